"""Image files are opened only in the documented raster formats.

Pillow chooses a decoder by content, not by suffix, and its PostScript decoder starts Ghostscript: a file named
`.png` could run a program. So every data set reads through one of these two functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are opened."""


def open_image(path: Path) -> Image.Image:
    """The decoded image. Raises the errors of Pillow, also for other formats and for decompression bombs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return image


@contextmanager
def raster_only() -> Iterator[None]:
    """Inside, other libraries that open images with Pillow get only the documented formats."""
    original = Image.open

    def limited(*args: Any, **kwargs: Any) -> Any:
        return partial(original, formats=FORMATS)(*args, **kwargs)

    Image.open = limited
    try:
        yield
    finally:
        Image.open = original
