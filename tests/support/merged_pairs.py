"""The merge of two written sources, by any method, from a few random images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from fsmerge_cli import merge
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.runs.result import MergeResult
from tests.support.sources import random_images


def merged_pair(root: Path, method: str) -> tuple[MergeResult, Tensor]:
    """The merge of the sources root/a and root/b into root/out, and its images [24, 3, 8, 8]."""
    options: dict[str, Any] = {"name": method}
    if issubclass(METHODS[method], Trained):
        options |= {"steps": 3}
    entries = [{"name": name, "checkpoint": str(root / name)} for name in "ab"]
    images = random_images(1, 24, (3, 8, 8)).images
    data = {"a": images[:12], "b": images[12:]}
    return merge(entries, method=options, data=data, output=root / "out"), images
