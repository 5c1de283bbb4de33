"""Linear probes: how well a linear classifier on features tells the classes of CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsmerge_cli import load_merged, load_source
from fsmerge_cli.training.teachers import network
from scripts.features.sources import NAMES, entries, images

LABELLED = 1600
"""Training images of a probe: the last ones of the archive, of which no merge sees any."""

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Relative to the mean variance of the features; the best on a fifth of the training images is taken."""

BATCH = 250


@cache
def labelled(path: Path, last: int | None = None) -> tuple[Tensor, Tensor]:
    """Pixels [n, 3, H, W] in 0..1 and classes [n]."""
    with np.load(path) as file:
        pixels, classes = file["images"], file["labels"]
    start = 0 if last is None else len(pixels) - last
    found = torch.from_numpy(pixels[start:]).movedim(-1, 1).float() / 255
    return found, torch.from_numpy(classes[start:]).long()


def probes(folder: Path, root: Path, work: Path) -> dict[str, dict[str, float]]:
    """By source: top-1 of a probe on its own features, and on the merged model's estimate of them."""
    model, own = load_merged(folder), of_sources(root, work)
    train, test = _features(model.features, root, work)
    found = {}
    for name in NAMES:
        U = model.projectors[name].double()
        estimate = probe_accuracy(train[0] @ U.T, train[1], test[0] @ U.T, test[1])
        found[name] = {"probe": estimate, **own[name]}
    return found


@cache
def of_sources(root: Path, work: Path) -> dict[str, dict[str, float]]:
    """By source: top-1 of a probe on its own features."""
    found = {}
    for entry in entries(root, None, work):
        module = network(load_source(entry))
        train, test = _features(module, root, work)
        found[entry["name"]] = {"probe_of_source": probe_accuracy(*train, *test)}
    return found


def _features(network: Callable[[Tensor], Tensor], root: Path, work: Path) -> list[tuple[Tensor, Tensor]]:
    """Features and classes of the training and of the test images of a probe."""
    parts = []
    with torch.no_grad():
        for split, last in (("train", LABELLED), ("test", None)):
            pixels, classes = labelled(images(root, work, split), last)
            rows = [network(part) for part in torch.split(pixels, BATCH)]
            parts.append((torch.cat(rows).double(), classes))
    return parts


def probe_accuracy(x: Tensor, classes: Tensor, test: Tensor, truth: Tensor) -> float:
    """Top-1 of ridge regression on the classes as unit vectors; x [n, d], test [m, d]."""
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-12)
    x, test = (x - mean) / deviation, (test - mean) / deviation
    held = torch.arange(len(x)) % 5 == 0

    def right(ridge: float, rows: Tensor, on: Tensor, expected: Tensor) -> float:
        y = torch.nn.functional.one_hot(classes[rows]).double()
        gram = x[rows].T @ x[rows] + ridge * int(rows.sum()) * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(gram, x[rows].T @ (y - y.mean(0)))
        return float(((on @ weights + y.mean(0)).argmax(1) == expected).double().mean())

    best = max(RIDGES, key=lambda ridge: right(ridge, ~held, x[held], classes[held]))
    return right(best, torch.ones_like(held), test, truth)
