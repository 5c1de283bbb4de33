"""The quadratic surrogate of MAP (Li et al., arXiv 2406.07529), and the Pareto front that it predicts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

Points = NDArray[np.float64]

CANDIDATES = 2**13
"""Points whose accuracies are predicted."""

BLOCK = 256
"""Points that are compared with all others at once."""


def design(size: int, count: int, seed: int) -> Points:
    """`count` points that fill [0, 1]^size evenly (scrambled Sobol sequence), [count, size]."""
    power = max(1, int(np.ceil(np.log2(count))))
    return np.asarray(qmc.Sobol(size, seed=seed).random_base2(power)[:count])


def needed(size: int) -> int:
    """The number of coefficients of a quadratic in `size` variables."""
    return (size + 1) * (size + 2) // 2


def terms(points: Points) -> Points:
    """1, c_i and c_i c_j (i <= j) of every point, [n, needed(size)]."""
    n, size = points.shape
    pairs = [points[:, i] * points[:, j] for i in range(size) for j in range(i, size)]
    return np.stack([np.ones(n), *points.T, *pairs], 1)


def fit(points: Points, metrics: Points) -> tuple[Points, Points]:
    """Least squares M_t(c) = e_t + b_t c + c^T A_t c of every task: the coefficients, and R^2 per task.

    points: [n, size]. metrics: [n, tasks].
    """
    found = np.linalg.lstsq(terms(points), metrics, rcond=None)[0]
    left = ((metrics - terms(points) @ found) ** 2).sum(0)
    spread = ((metrics - metrics.mean(0)) ** 2).sum(0)
    return np.asarray(found, float), np.asarray(1 - left / np.where(spread > 0, spread, 1.0), float)


def predicted_front(coefficients: Points, size: int, count: int, seed: int) -> tuple[Points, Points]:
    """At most `count` points of the surrogate's Pareto front, and their predicted metrics.

    The front of CANDIDATES points that fill the box; of it the point of the best mean, and then always the point
    whose metrics are farthest from those of the chosen ones.
    """
    points = np.concatenate([design(size, CANDIDATES, seed), np.eye(size), np.ones((1, size))])
    metrics = np.clip(terms(points) @ coefficients, 0.0, 1.0)
    kept = np.flatnonzero(on_front(metrics))
    chosen = [int(kept[metrics[kept].mean(1).argmax()])]
    while len(chosen) < min(count, len(kept)):
        distances = np.stack([((metrics[kept] - metrics[i]) ** 2).sum(1) for i in chosen]).min(0)
        if distances.max() <= 0:
            break
        chosen.append(int(kept[distances.argmax()]))
    order = sorted(chosen, key=lambda i: tuple(metrics[i]))
    return points[order], metrics[order]


def on_front(metrics: Points) -> NDArray[np.bool_]:
    """Whether no other row is at least as good in all columns and better in one, [n]."""
    kept = np.ones(len(metrics), dtype=bool)
    for start in range(0, len(metrics), BLOCK):
        stop = min(start + BLOCK, len(metrics))
        better, equal_or_better = (np.full((stop - start, len(metrics)), value) for value in (False, True))
        for column in metrics.T:  # column by column: broadcasting over the last axis is many times slower
            better |= column > column[start:stop, None]
            equal_or_better &= column >= column[start:stop, None]
        kept[start:stop] = ~(better & equal_or_better).any(1)
    return kept
