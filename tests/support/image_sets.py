"""One folder of class folders, read by each data set that reads image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fsmerge_cli.data import DataConfig
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.data.images.hf import HuggingFace
from fsmerge_cli.data.images.torchvision import TorchVision

Opened = Callable[[Path], DataConfig]


def folder(root: Path) -> DataConfig:
    """Of ROOT/t/train."""
    return Folder(root=str(root))


def torchvision(root: Path) -> DataConfig:
    """Of ROOT/t/train."""
    own = {"root": str(root / "t/train")}
    return TorchVision(dataset="ImageFolder", train_args=own, test_args=own, test_share=0)


def hf(root: Path) -> DataConfig:
    """Of ROOT/t/train."""
    return HuggingFace(path=str(root / "t/train"))


EVERY: list[Opened] = [folder, torchvision, hf]
