"""Data sets. To add one: write one file here, one line below and one YAML in configs/data."""

from __future__ import annotations

from fsmerge_cli.data.base import DataConfig, ImageSet, Task
from fsmerge_cli.data.digits import Digits
from fsmerge_cli.data.folder import Folder
from fsmerge_cli.data.glyphs import Glyphs

DATASETS: dict[str, type[DataConfig]] = {
    "digits": Digits,
    "folder": Folder,
    "glyphs": Glyphs,
}

__all__ = ["DATASETS", "DataConfig", "ImageSet", "Task"]
