"""The range of pixels: the one place where images and arrays of any type become 8 bits per channel, upright.

A range is never taken from the type alone where the type does not determine it:

    8 bits (also palettes, CMYK, YCbCr), 1 bit, bool     their own range
    16 bits without sign, 12 bits                        0 .. 65535, 0 .. 4095
    floats                                               0 .. 1; any other value is refused
    other integers (32 bits, 64 bits, with sign)         refused
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from fsmerge_cli.common.errors import DataError

RANGES = "uint8, uint16 or bool, or floats in 0..1"

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""

SIGNED, WHITE_IS_ZERO = 2, 0
"""Values of SAMPLE_FORMAT and PHOTOMETRIC."""

MOST_BITS = 16


def as_uint8(values: Any, largest: int = 2**MOST_BITS - 1) -> Any:
    """An array of any shape as uint8. largest: the value of white in uint16. Raises DataError.

    The message of the error continues a sentence about the pixels: "should be ..., and ...".
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size == 1:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u" and size == MOST_BITS // 8:
        scaled = np.rint(values.astype(np.float32) / np.float32(largest / 255))
        return scaled.clip(0, 255).astype(np.uint8)
    if kind != "f":
        raise DataError(
            f"should be {RANGES}, and are {values.dtype}, whose range is not known. Save them as uint8 "
            "if they range over 0..255"
        )
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # also if one of them is not a number
        raise DataError(
            f"should be {RANGES}, and range from {low:g} to {high:g}. Save the pixels without normalisation, "
            "divided by 255"
        )
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)


def upright_8_bit(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel, turned as its EXIF orientation says; transparency is kept.

    Raises DataError where its range is not known or its colours cannot be converted.
    """
    image.load()
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF
    if image.mode == "LAB":
        raise DataError("its colours are CIELAB. Save it as RGB")
    if SIGNED in np.atleast_1d(tags.get(SAMPLE_FORMAT, 1)):
        raise DataError("its pixels are integers with a sign, whose range is not known. Save it with 8 or 16 bits")
    turned = _turned(image)
    if turned.mode == "P" and "transparency" in turned.info:
        return turned.convert("RGBA")  # Pillow warns if it is converted to RGB directly
    if not turned.mode.startswith(("I", "F")):
        return turned
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise DataError("it stores white as 0 in more than 8 bits. Save it with black as 0")
    bits = int(np.max(tags.get(BITS_PER_SAMPLE, MOST_BITS)))
    values = np.asarray(turned)
    if image.mode == "I" and image.format == "PPM":  # scaled to 16 bits by Pillow
        values = values.astype(np.uint16)
    return Image.fromarray(_of_file(values, min(bits, MOST_BITS)))


def _of_file(values: Any, bits: int) -> Any:
    try:
        return as_uint8(values, 2**bits - 1)
    except DataError as error:
        raise DataError(f"its pixels {error}") from None


def _turned(image: Image.Image) -> Image.Image:
    """Turned by the EXIF orientation; an image whose EXIF data cannot be read is returned unchanged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of corrupt EXIF data
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if orientation in (0, 1):
                return image
            return ImageOps.exif_transpose(image)
        except Exception:  # the parser raises errors of many types
            return image
