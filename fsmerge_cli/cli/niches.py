"""Evolution of merged models with moving boundaries and competition (M2N2, Abrantes et al., arXiv 2508.16204)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
"""Which images every model predicts correctly, 1 or 0, [models, images]."""

DIGITS = 4
"""Decimals of boundaries and shares, so that a job is named by what it merges."""


@dataclass(frozen=True)
class Genome:
    """A model between the sources: the shares of the sources, of sum 1, in each part between the boundaries."""

    boundaries: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def overrides(self) -> tuple[str, str]:
        """The keys of method=slerp."""
        shares = ",".join("[" + ",".join(map(str, own)) + "]" for own in self.shares)
        return f"method.boundaries=[{','.join(map(str, self.boundaries))}]", f"method.shares=[{shares}]"

    def at(self, place: float) -> tuple[float, ...]:
        """The shares at a place in 0..1."""
        return self.shares[sum(boundary <= place for boundary in self.boundaries)]


def source(i: int, k: int) -> Genome:
    """One of the sources."""
    return Genome((), (tuple(float(j == i) for j in range(k)),))


def crossover(first: Genome, second: Genome, split: float, mixing: float) -> Genome:
    """A child: slerp of the parents at `mixing` before the split point, and at 1 - `mixing` behind it.

    Between two points of one great circle slerp is linear in the angle, so that a part that was interpolated
    several times has shares of the sources again.
    """
    ends = sorted({*first.boundaries, *second.boundaries, round(split, DIGITS), 1.0} - {0.0})
    boundaries: list[float] = []
    shares: list[tuple[float, ...]] = []
    for start, end in zip([0.0, *ends], ends):
        t = mixing if end <= round(split, DIGITS) else 1 - mixing
        middle = (start + end) / 2
        own = tuple(round((1 - t) * a + t * b, DIGITS) for a, b in zip(first.at(middle), second.at(middle)))
        if not shares or own != shares[-1]:
            shares.append(own)
            boundaries.append(start)
    return Genome(tuple(boundaries[1:]), tuple(shares))


def fitness_by_image(scores: Scores, alpha: float) -> Scores:
    """s_ij / z_j^alpha: the models that are right share an image, z_j of them, [models, images]."""
    total = scores.sum(0) ** alpha
    return scores / np.where(total > 0, total, 1.0)


def survivors(scores: Scores, size: int, alpha: float) -> list[int]:
    """The models that are kept: one after the other, the least fit of those that are left is removed."""
    left = list(range(len(scores)))
    while len(left) > size:
        fitness = fitness_by_image(scores[left], alpha).sum(1)
        left.pop(int(fitness.argmin()))
    return left


def parents(scores: Scores, alpha: float, random: np.random.Generator) -> tuple[int, int]:
    """The first by its fitness; the second by what it would add on the images where it is fitter (attraction)."""
    own = fitness_by_image(scores, alpha)
    first = _draw(own.sum(1), random)
    return first, _draw(np.maximum(own - own[first], 0).sum(1), random)


def _draw(weights: Sequence[float] | NDArray[np.float64], random: np.random.Generator) -> int:
    """An index with these relative chances; all are equal where all are zero."""
    chances = np.asarray(weights, dtype=float)
    total = chances.sum()
    return int(random.choice(len(chances), p=chances / total if total > 0 else None))
