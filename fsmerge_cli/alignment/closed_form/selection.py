"""Selection of units or of whole heads by the least squares error that is left in what is read from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-10
"""A candidate with less than this share of its variance left is a combination of the selected ones."""


def select_units(gram: Tensor, cross: Tensor, count: int, ridge: float = 0.0) -> Tensor:
    """The indices of `count` units, in order of selection, from which the targets are regressed best, greedily.

    gram: E[x x^T] of all candidates, [n, n], fp64. cross: E[x y^T] with the targets, [n, q]. Every step takes the
    unit that lowers the squared error of the regression most: orthogonal forward selection with one column of a
    Cholesky factor per step, O(n (count + q)) each.
    """
    n = len(gram)
    diagonal = gram.diagonal().clone()
    gram = gram + (ridge * diagonal.mean()) * torch.eye(n, dtype=gram.dtype, device=gram.device)
    left, own = gram.diagonal().clone(), gram.diagonal().clone()
    residual = cross.clone()
    scores = residual.square().sum(1)
    factor = torch.zeros(n, count, dtype=gram.dtype, device=gram.device)
    chosen: list[int] = []
    free = torch.ones(n, dtype=torch.bool, device=gram.device)
    for step in range(count):
        usable = free & (left > TINY * own)
        if not bool(usable.any()):
            usable = free
        gain = torch.where(usable, scores / left.clamp(min=1e-300), torch.full_like(left, -1))
        best = int(gain.argmax())
        chosen.append(best)
        free[best] = False
        if float(left[best]) <= TINY * float(own[best]):
            continue  # nothing new: its column would be rounding error
        column = (gram[:, best] - factor[:, :step] @ factor[best, :step]) / left[best].sqrt()
        factor[:, step] = column
        row = residual[best] / left[best].sqrt()
        scores = scores - 2 * column * (residual @ row) + column.square() * row.square().sum()
        residual -= column[:, None] * row
        left = left - column.square()
    return torch.tensor(chosen, device=gram.device)


def select_groups(gram: Tensor, cross: Tensor, groups: Sequence[Tensor], count: int) -> list[int]:
    """Places of `count` groups of units (attention heads) from which the targets are regressed best.

    Greedily, then with exchanges of one selected group for another until none helps. gram: [n, n]; cross: [n, q].
    """
    trace = float(gram.diagonal().mean())
    regular = gram + 1e-9 * trace * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)

    def explained(places: Sequence[int]) -> float:
        rows = torch.cat([groups[place] for place in places])
        factor = torch.linalg.cholesky(regular[rows][:, rows])
        return float(torch.linalg.solve_triangular(factor, cross[rows], upper=False).square().sum())

    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(
            max((g for g in range(len(groups)) if g not in chosen), key=lambda g: explained([*chosen, g]))
        )
    best, improved = explained(chosen), True
    while improved:
        improved = False
        for place in range(len(chosen)):
            for other in (g for g in range(len(groups)) if g not in chosen):
                tried = [*chosen[:place], other, *chosen[place + 1 :]]
                value = explained(tried)
                if value > best * (1 + 1e-9):
                    chosen, best, improved = tried, value, True
    return sorted(chosen)
