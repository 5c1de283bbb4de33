"""Two tasks of small noise images in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fsmerge_cli.data.draw import digest
from fsmerge_cli.data.images.folder import Folder


def picture(path: Path, seed: int) -> None:
    """Write an image that is different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)).save(path)


def images(root: Path, train: int = 40, test: int = 6) -> Folder:
    for place, task in enumerate("ab"):
        for n in range(train):
            picture(root / task / f"train/{n:03}.png", 1000 * place + n)
        for n in range(test):
            picture(root / task / f"test/{task}-{n % 3}/{n:03}.png", 1000 * place + 500 + n)
    return Folder(root=str(root), images_per_task="all")


def digests(pixels: torch.Tensor) -> set[bytes]:
    return {digest(image) for image in pixels}
