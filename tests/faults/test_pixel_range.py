"""The range of pixels: every mode of a file and every type of an array has the right values, or is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.decode import open_image
from fsmerge_cli.data.images.tensors import Tensors
from tests.support.image_sets import EVERY, Opened

GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
TASK = Task("t", ("cat",))


def image(values: Any, mode: str | None = None) -> Image.Image:
    found = Image.fromarray(np.asarray(values))
    return found if mode is None else found.convert(mode)


def palette(transparent: bool) -> Image.Image:
    found = Image.new("P", (3, 2))
    found.putpalette([value for row in COLOUR.reshape(-1, 3) for value in row])
    found.putdata(range(6))
    if transparent:
        found.info["transparency"] = bytes([0, 128, 255, 255, 0, 9])
    return found


def with_alpha(mode: str) -> Image.Image:
    found = image(COLOUR if mode == "RGBA" else GREY, mode)
    found.putalpha(image(255 - GREY))
    return found


def tiff(values: Any, **tags: int) -> bytes:
    """A TIFF file of one channel, little-endian, with any tags; Pillow writes fewer kinds than it reads."""
    rows, columns = values.shape
    bits = tags.get("bits", values.dtype.itemsize * 8)
    data = values.tobytes()
    entries = [(256, columns), (257, rows), (258, bits), (259, 1), (262, tags.get("photometric", 1)), (273, 8)]
    entries += [(277, 1), (278, rows), (279, len(data)), (339, tags.get("sample_format", 1))]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + struct.pack("<I", 0)


def packed_12_bits(values: Any) -> Any:
    """Two values in three bytes, as TIFF stores them."""
    first, second = values.reshape(-1, 2).astype(np.int64).T
    both = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    return both.astype(np.uint8).reshape(len(values), -1)


def twelve_bits() -> bytes:
    values = np.array([[0, 819], [2457, 4095]])
    packed = tiff(packed_12_bits(values), bits=12)
    return packed.replace(struct.pack("<HHIHH", 256, 3, 1, 3, 0), struct.pack("<HHIHH", 256, 3, 1, 2, 0))


def pgm(largest: int) -> bytes:
    values = (GREY.astype(np.int64) * largest // 255).astype(">u2" if largest > 255 else "u1")
    return b"P5 3 2 %d\n" % largest + values.tobytes()


Written = Image.Image | bytes
READ: dict[str, tuple[str, Callable[[], Written], Any]] = {
    "L": ("png", lambda: image(GREY), GREY),
    "RGB": ("png", lambda: image(COLOUR), COLOUR),
    "1 bit": ("png", lambda: image(GREY > 100, "1"), (GREY > 100) * 255),
    "1 bit, TIFF": ("tif", lambda: image(GREY > 100, "1"), (GREY > 100) * 255),
    "palette": ("png", lambda: palette(False), COLOUR),
    "palette with transparency": ("png", lambda: palette(True), COLOUR),
    "palette, BMP": ("bmp", lambda: palette(False), COLOUR),
    "LA": ("png", lambda: with_alpha("LA"), GREY),
    "RGBA": ("png", lambda: with_alpha("RGBA"), COLOUR),
    "RGBA, TIFF": ("tif", lambda: with_alpha("RGBA"), COLOUR),
    "CMYK, TIFF": ("tif", lambda: image(COLOUR, "CMYK"), COLOUR),
    "16 bits, PNG": ("png", lambda: image(GREY.astype(np.uint16) * 257), GREY),
    "16 bits, TIFF": ("tif", lambda: image(GREY.astype(np.uint16) * 257), GREY),
    "16 bits, big-endian TIFF": ("tif", lambda: image((GREY.astype(np.uint16) * 257).astype(">u2")), GREY),
    "12 bits, TIFF": ("tif", twelve_bits, np.array([[0, 51], [153, 255]])),
    "PGM of 255": ("pgm", lambda: pgm(255), GREY),
    "PGM of 15": ("pgm", lambda: pgm(15), GREY),
    "PGM of 1020": ("pgm", lambda: pgm(1020), GREY),
    "PGM of 65535": ("pgm", lambda: pgm(65535), GREY),
    "floats in 0..1": ("tif", lambda: image(GREY.astype(np.float32) / 255), GREY),
    "white is 0, 8 bits": ("tif", lambda: tiff(GREY, photometric=0), 255 - GREY),
    "lossless WebP": ("webp", lambda: image(COLOUR), COLOUR),
}

UNKNOWN = "its pixels should be uint8, uint16 or bool, or floats in 0..1, and "
NOT_IN_RANGE = UNKNOWN + "range from {}. Save the pixels without normalisation, divided by 255"
INT32 = UNKNOWN + "are int32, whose range is not known. Save them as uint8 if they range over 0..255"
SIGNED = "its pixels are integers with a sign, whose range is not known. Save it with 8 or 16 bits"
WHITE = "it stores white as 0 in more than 8 bits. Save it with black as 0"

REFUSED: dict[str, tuple[Callable[[], Written], str]] = {
    "32 bits": (lambda: tiff(GREY.astype(np.uint32) * 2**24), INT32),
    "32 bits, small": (lambda: tiff(GREY.astype(np.uint32)), INT32),
    "32 bits with a sign": (lambda: image(GREY.astype(np.int32)), SIGNED),
    "16 bits with a sign": (lambda: tiff(GREY.astype(np.int16), sample_format=2), SIGNED),
    "8 bits with a sign": (lambda: tiff(GREY.astype(np.int8), sample_format=2), SIGNED),
    "floats in 0..255": (lambda: image(GREY.astype(np.float32)), NOT_IN_RANGE.format("0 to 255")),
    "normalised floats": (lambda: image(GREY / np.float32(128) - 1), NOT_IN_RANGE.format("-1 to 0.992188")),
    "not a number": (lambda: image(GREY * np.float32(np.nan)), NOT_IN_RANGE.format("nan to nan")),
    "white is 0, 16 bits": (lambda: tiff(GREY.astype(np.uint16), photometric=0), WHITE),
    "white is 0, floats": (lambda: tiff(GREY.astype(np.float32) / 255, photometric=0, sample_format=3), WHITE),
    "CIELAB": (lambda: Image.new("LAB", (3, 2)), "its colours are CIELAB. Save it as RGB"),
}


def put(path: Path, content: Written, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **{"lossless": True, "icc_profile": None, **options})
    return path


def pixels_of(kind: Opened, root: Path, size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    images = kind(root).build("train", TASK, ToPixels((channels, *size)))
    assert images is not None
    assert len(images) == 1
    return images[0][0]


@pytest.mark.full
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("error")
def test_a_file_has_the_same_pixels_in_every_data_set(name: str, kind: Opened, tmp_path: Path) -> None:
    suffix, written, values = READ[name]
    put(tmp_path / f"t/train/cat/a.{suffix}", written())
    expected = torch.from_numpy(np.atleast_3d(values).astype(np.float32) / 255).movedim(-1, 0)
    found = pixels_of(kind, tmp_path, expected.shape[1:])
    torch.testing.assert_close(found, expected.expand(3, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", REFUSED)
def test_a_file_whose_range_is_not_known_is_refused(name: str, kind: Opened, tmp_path: Path) -> None:
    written, message = REFUSED[name]
    put(tmp_path / "t/train/cat/a.tif", written())
    with pytest.raises(DataError) as error:
        pixels_of(kind, tmp_path, (2, 3))
    assert f" cannot be read ({message}). Repair or remove it." in str(error.value)


def turned(values: Any, orientation: int) -> Any:
    """The array that a file holds, if `values` is what its orientation makes of it."""
    held = {1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1]}
    turn = values.transpose(1, 0, 2)
    held |= {5: turn, 6: turn[::-1], 7: turn[::-1, ::-1], 8: turn[:, ::-1]}
    return np.ascontiguousarray(held[orientation])


@pytest.mark.full
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "grey.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_in_every_data_set(
    orientation: int, suffix: str, kind: Opened, tmp_path: Path
) -> None:
    shown = COLOUR.repeat(16, 0).repeat(16, 1)
    if suffix == "grey.tif":  # which Pillow maps into memory, before it is turned
        shown = shown[..., :1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    put(tmp_path / f"t/train/cat/a.{suffix}", image(np.squeeze(turned(shown, orientation))), exif=exif, quality=95)
    found = pixels_of(kind, tmp_path, shown.shape[:2])
    expected = torch.from_numpy(shown.astype(np.float32) / 255).movedim(-1, 0)
    assert (found - expected).abs().mean() < 0.05  # JPEG is not exact; a wrong orientation differs by 0.2


def test_16_bits_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = turned(GREY[..., None], 6)[..., 0].astype(np.uint16) * 257
    for suffix in ("png", "tif"):
        path = put(tmp_path / f"a.{suffix}", image(deep), exif=exif)
        assert np.array_equal(np.asarray(open_image(path)), GREY)
        with path.open("rb") as file:  # as an image that the user passes from Python
            opened = Image.open(file)
            assert torch.equal(ToPixels((1, 2, 3))(opened)[0], torch.from_numpy(GREY / np.float32(255)))


@pytest.mark.filterwarnings("error")
def test_an_image_with_corrupt_exif_data_is_read(tmp_path: Path) -> None:
    for exif in (b"Exif\0\0II*\0\x08", b"Exif\0\0nothing", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        path = put(tmp_path / "a.png", image(GREY), exif=exif)
        assert np.array_equal(np.asarray(open_image(path)), GREY)


ARRAYS: dict[str, Any] = {
    "uint8": GREY,
    "uint16": GREY.astype(np.uint16) * 257,
    "big-endian uint16": (GREY.astype(np.uint16) * 257).astype(">u2"),
    "float16": (GREY / 255).astype(np.float16),
    "float32": (GREY / 255).astype(np.float32),
    "float64": GREY / 255,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_a_known_range(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAYS[name][None])
    images = Tensors(train=str(tmp_path / "a.npy")).build("train", TASK, ToPixels((1, 2, 3)))
    assert images is not None
    assert torch.equal(images[0][0], torch.from_numpy(GREY[None] / np.float32(255)))


def test_booleans_are_black_and_white(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(GREY[None] > 100), tmp_path / "a.pt")
    images = Tensors(train=str(tmp_path / "a.pt")).build("train", TASK, ToPixels((1, 2, 3)))
    assert images is not None
    assert torch.equal(images[0][0], torch.from_numpy(GREY[None] > 100).float())


ONLY = "images should be uint8, uint16 or bool, or floats in 0..1, and "
NO_RANGE = ONLY + "are {}, whose range is not known. Save them as uint8 if they range over 0..255."
NO_UNIT = ONLY + "range from {}. Save the pixels without normalisation, divided by 255."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *[
            (GREY.astype(kind), NO_RANGE.format(kind))
            for kind in ("int8", "int16", "int32", "int64", "uint32", "uint64")
        ],
        (GREY.astype(np.complex64), NO_RANGE.format("complex64")),
        (GREY.astype(np.float32), NO_UNIT.format("0 to 255")),
        (GREY / 128 - 1, NO_UNIT.format("-1 to 0.992188")),
        (np.where(GREY > 100, np.nan, 0.5), NO_UNIT.format("nan to nan")),
        (np.where(GREY > 100, np.inf, 0.5), NO_UNIT.format("0.5 to inf")),
    ],
)
def test_an_array_whose_range_is_not_known_is_refused(values: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values[None])
    with pytest.raises(DataError) as error:
        Tensors(train=str(tmp_path / "a.npy")).build("train", TASK, ToPixels((1, 2, 3)))
    assert str(error.value) == f"{tmp_path / 'a.npy'}: {message}"
