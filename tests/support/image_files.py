"""Image files of one colour."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def put(path: Path, value: int = 0, mode: str = "L", size: tuple[int, int] = (2, 2)) -> None:
    """Write an image of one colour, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)
