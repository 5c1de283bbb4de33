"""Agreement without labels and heads: the images that are nearest to an image, by a model and by a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 10
"""Images among which the source's nearest one is looked for."""

MIN_IMAGES, MAX_IMAGES = 2 * NEIGHBOURS + 1, 2000
"""Fewer images say little (by chance the share is NEIGHBOURS / (images - 1)); of more, the first are compared."""

ROWS = 512
"""Images whose similarities to all others are in memory at once."""


@dataclass(frozen=True)
class Neighbours:
    """Of `images` images: how often the source's nearest image is also the model's nearest, or one of its ten."""

    images: int
    nearest: int
    among: int


def neighbours_by_task(
    found: Sequence[Tensor], sources: Sequence[Tensor], task: Tensor, tasks: Sequence[str], heads: Sequence[int]
) -> dict[str, Neighbours]:
    """By task without a head, on its own images; empty without estimates of the features.

    found, sources: of every task on all images, [n, d_i]. task [n]: index of the task of every image. heads:
    indices of the tasks with one, whose predictions are compared instead.
    """
    compared = {}
    for index, (name, mine, own) in enumerate(zip(tasks, found, sources)):
        if index not in heads:
            compared[name] = neighbours(mine[task == index], own[task == index])
    return {name: own for name, own in compared.items() if own is not None}


def neighbours(found: Tensor, source: Tensor) -> Neighbours | None:
    """Compare a model's estimates [n, d] of a source's features with these [n, d], by cosine.

    The nearest image is one of the others. None for fewer than MIN_IMAGES images.
    """
    n = min(len(found), MAX_IMAGES)
    if n < MIN_IMAGES:
        return None
    mine, own = (torch.nn.functional.normalize(x[:n].double(), dim=1) for x in (found, source))
    nearest = among = 0
    for start in range(0, n, ROWS):
        rows = torch.arange(start, min(start + ROWS, n))
        first = _similarities(own, rows).argmax(1)
        ten = _similarities(mine, rows).topk(NEIGHBOURS, dim=1).indices
        nearest += int((ten[:, 0] == first).sum())
        among += int((ten == first[:, None]).any(1).sum())
    return Neighbours(n, nearest, among)


def _similarities(features: Tensor, rows: Tensor) -> Tensor:
    """Cosines of `rows` to all images, [rows, n]; to itself below all others."""
    found = features[rows] @ features.T
    found[torch.arange(len(rows)), rows] = -2.0
    return found
