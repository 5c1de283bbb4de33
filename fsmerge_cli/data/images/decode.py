"""Image files are opened only in the documented raster formats, and all in the same way.

Pillow chooses a decoder by content, not by suffix, and its PostScript decoder starts Ghostscript: a file named
`.png` could run a program. So every data set reads through one of these two functions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from fsmerge_cli.common.foreign_files import require_regular
from fsmerge_cli.data.images.eight_bit import upright_8_bit

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are opened."""

_pillow_open = Image.open


def open_image(path: Path | str | BinaryIO) -> Image.Image:
    """The first image of a file or of an open one, with 8 bits per channel and upright.

    Raises the errors of Pillow, also for other formats and for decompression bombs; DataError where the range of
    its pixels is not known.
    """
    return _decoded(path)


@contextmanager
def raster_only() -> Iterator[None]:
    """Inside, other libraries that open images with Pillow get what `open_image` returns.

    They convert to RGB themselves, which clips 16 bits instead of scaling them.
    """
    original = Image.open

    def limited(fp: Any, mode: str = "r", formats: Any = None) -> Any:
        return _decoded(fp)

    Image.open = limited
    try:
        yield
    finally:
        Image.open = original


def _decoded(file: Any) -> Image.Image:
    """`file`: a path or an open file."""
    if isinstance(file, str | bytes | os.PathLike):
        require_regular(Path(os.fsdecode(file)))
        with open(file, "rb") as opened:  # a path would be memory-mapped, which garbles TIFF files that are turned
            try:
                return _decoded(opened)
            except UnidentifiedImageError:
                raise UnidentifiedImageError(f"cannot identify image file {os.fsdecode(file)!r}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _pillow_open(file, formats=FORMATS) as image:
            return upright_8_bit(image)
