"""Selection of units or of whole heads by the least squares error that is left in what is read from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-10
"""A candidate with less than this share of its variance left is a combination of the selected ones."""

BLOCK = 64
"""Steps of the selection after which what is left of the moments is computed again."""


def select_units(gram: Tensor, cross: Tensor, count: int, ridge: float = 0.0) -> Tensor:
    """The indices of `count` units, in order of selection, from which the targets are regressed best, greedily.

    gram: E[x x^T] of all candidates, [n, n], fp64. cross: E[x y^T] with the targets, [n, q]. Every step takes the
    unit that lowers the squared error of the regression most: orthogonal forward selection with one column of a
    Cholesky factor per step. ridge: added to the diagonal, relative to its mean. What is left of both matrices is
    computed once per BLOCK steps, as matrix products, O(n^2 count) in all; steps in between correct the rows that
    they need.
    """
    gram, cross = gram.clone(), cross.clone()
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    left, own, scores = gram.diagonal().clone(), gram.diagonal().clone(), cross.square().sum(1)
    columns, rows = gram.new_zeros(BLOCK, len(gram)), gram.new_zeros(BLOCK, cross.shape[1])
    chosen: list[int] = []
    free = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    for step in range(count):
        place = step % BLOCK
        if place == 0:
            gram.addmm_(columns.T, columns, alpha=-1)
            cross.addmm_(columns.T, rows, alpha=-1)
            columns.zero_()
            rows.zero_()
        usable = free & (left > TINY * own)
        if not bool(usable.any()):
            usable = free
        gain = torch.where(usable, scores / left.clamp(min=1e-300), torch.full_like(left, -1))
        best = int(gain.argmax())
        chosen.append(best)
        free[best] = False
        if float(left[best]) <= TINY * float(own[best]):
            continue  # nothing new: its column would be rounding error
        C, R = columns[:place], rows[:place]
        root = left[best].sqrt()
        row = (cross[best] - C[:, best] @ R) / root
        first, second = torch.stack([C[:, best], R @ row]) @ C
        column = (gram[best] - first) / root
        columns[place], rows[place] = column, row
        scores = scores - 2 * column * (cross @ row - second) + column.square() * row.square().sum()
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
