"""Classifiers that are exact by construction, with images of as many classes as needed.

An image of class k is dark with one bright pixel, number k of 4 x 4; the classifier passes the pixels through, and
each row of its head reads one of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

SIDE = 4
PIXELS = SIDE * SIDE


def write_classifier(
    folder: Path, order: Sequence[int], mean: float | None = None, labels: Sequence[str] | None = None
) -> Path:
    """A checkpoint whose row i is right for images of class order[i]. mean: of the pixels that it expects."""
    folder.mkdir(parents=True)
    eye = torch.eye(PIXELS)
    tensors = {"fc0.weight": 8 * eye, "fc0.bias": torch.full((PIXELS,), -4.0)}
    tensors |= {"fc1.weight": eye.clone(), "fc1.bias": torch.zeros(PIXELS), "head.weight": 10 * eye[list(order)]}
    if mean is not None:  # of a network that was trained on pixels with their mean subtracted
        tensors["fc0.bias"] = -4.0 + tensors["fc0.weight"].sum(1) * mean
    save_file(
        {n: t.contiguous() for n, t in {**tensors, "head.bias": torch.zeros(len(order))}.items()},
        folder / "model.safetensors",
    )
    config = {"architecture": "mlp", "model_args": {"input_size": [1, SIDE, SIDE], "widths": [PIXELS, PIXELS]}}
    config["pretrained_cfg"] = {"mean": [0.0], "std": [1.0], "crop_pct": 1.0}
    (folder / "config.json").write_text(
        json.dumps({**config, **({"label_names": list(labels)} if labels else {})})
    )
    return folder


def write_classes(root: Path, names: Sequence[str], split: str = "test", count: int = 6) -> None:
    """Class folders: the images of names[k] are of class k."""
    for number, name in enumerate(names):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            image = Image.new("L", (SIDE, SIDE), i)
            image.putpixel((number % SIDE, number // SIDE), 255 - i)
            image.save(root / split / name / f"{i}.png")
