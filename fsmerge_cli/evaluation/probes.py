"""Linear probes: how well a linear classifier on features tells classes, for sources without a head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5

MIN_IMAGES, MAX_IMAGES = 4 * FOLDS, 1000
"""With fewer labelled images there is no probe; of more, so many at equal distances in their order are taken."""

RIDGES = tuple(10.0**power for power in range(-4, 2))
"""Relative to the mean squared singular value of the features."""


@dataclass(frozen=True)
class Probe:
    """Of `images` labelled images of `classes` classes: the share whose class a linear probe predicts (top1)."""

    images: int
    classes: int
    top1: float


def probes_by_task(
    features: Sequence[Tensor], truth: tuple[Tensor, Tensor], tasks: Sequence[str], heads: Collection[int]
) -> dict[str, Probe]:
    """By task without a head, on its own labelled images; empty without estimates of the features.

    features: of every task on all images, [n, d_i]. truth: task [n] and class [n] (-1: none). heads: indices of
    the tasks with one, which is evaluated instead.
    """
    task, label = truth
    found = {}
    for index, (name, values) in enumerate(zip(tasks, features)):
        own = (task == index) & (label >= 0)
        if index not in heads and bool(own.any()):
            found[name] = probe(values[own], label[own])
    return {name: own for name, own in found.items() if own is not None}


def probe(features: Tensor, label: Tensor) -> Probe | None:
    """Top-1 of ridge regression on the classes as unit vectors, cross-fitted: each fold by the others.

    features [n, d], label [n]. The folds have equal shares of every class, so that the probe is the same for every
    model. None for fewer than MIN_IMAGES images, one class, or features that are not finite.
    """
    n = len(label)
    if n > MAX_IMAGES:
        rows = torch.arange(MAX_IMAGES) * n // MAX_IMAGES
        features, label = features[rows], label[rows]
    classes, own = label.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    if n < MIN_IMAGES or len(classes) < 2 or not bool(features.isfinite().all()):
        return None
    x, y, fold = features.double(), F.one_hot(own).double(), torch.empty_like(own)
    fold[own.argsort(stable=True)] = torch.arange(len(own)) % FOLDS
    right = 0
    for held in (fold == number for number in range(FOLDS)):
        right += int((_predicted(x[~held], y[~held], x[held]) == own[held]).sum())
    return Probe(len(own), len(classes), right / len(own))


def _predicted(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Classes [m] of `test` [m, d] by the ridge with the least leave-one-out error on x [n, d], y [n, classes]."""
    mean, target = x.mean(0), y.mean(0)
    U, s, V = torch.linalg.svd(x - mean, full_matrices=False)
    own, best = U.T @ (y - target), (float("inf"), y.new_zeros(()))
    for ridge in RIDGES:
        penalty = (ridge * s.square().mean()).clamp(min=1e-300)
        shrunk = s.square() / (s.square() + penalty)
        without_itself = (1 - 1 / len(x) - U.square() @ shrunk).clamp(min=1e-9)
        left = (y - target - U @ (shrunk[:, None] * own)) / without_itself[:, None]
        best = min(best, (float(left.square().sum()), penalty), key=lambda pair: pair[0])
    scale = s / (s.square() + best[1])
    logits: Tensor = (test - mean) @ V.T @ (scale[:, None] * own) + target
    return logits.argmax(1)
