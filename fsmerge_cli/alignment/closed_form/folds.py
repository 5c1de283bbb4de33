"""Ridge regressions whose ridge is chosen by cross-validation over images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form.moments import Linear, Moments, regression

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The ridges that are compared, relative to the mean variance of the regressors."""

WITHOUT_FOLDS = 1e-2
"""The ridge for a single image, which cannot be held out."""

FOLDS = 4

MANY, COLUMNS = 1024, 128
"""Regressors from which the ridge is chosen on one fold and on at most so many columns of y of every group."""


def folds_of(images: int, rows: int) -> Tensor:
    """The fold of every row [rows]: `images` originals, then equally many copies of each, in their order.

    All copies of an image are in its fold. The images of a task are neighbours, so every fold has some of them.
    """
    originals = torch.arange(images)
    copies = (rows - images) // max(1, images)
    return torch.cat([originals, originals.repeat_interleave(copies)]) % FOLDS


class FoldMoments:
    """Moments of every fold."""

    def __init__(self) -> None:
        self.parts = [Moments() for _ in range(FOLDS)]

    def add(self, x: Tensor, y: Tensor, folds: Tensor, weight: Tensor | None = None) -> None:
        """Add the rows x [n, p], y [n, q] of the images in `folds` [m]; an image has n / m rows, in order."""
        spread = folds.to(x.device).repeat_interleave(len(x) // len(folds))
        used = spread >= 0 if weight is None else weight > 0
        for place, part in enumerate(self.parts):
            if len(rows := (used & (spread == place)).nonzero().flatten()):
                part.add(x[rows], y[rows], None if weight is None else weight[rows])

    def fit(
        self,
        ridge: float | None,
        intercept: bool = True,
        prior: Tensor | None = None,
        groups: Sequence[int] | None = None,
    ) -> tuple[Linear, list[float]]:
        """The regression of y on x on all rows, and the ridge of every group of columns of y.

        ridge: None is the one of RIDGES with the least squared error on the fold that was not fitted. intercept,
        prior: see `regression`. groups: numbers of neighbouring columns of y (None: all are one group).
        """
        whole = total(self.parts)
        groups = groups or [torch.as_tensor(whole.y).shape[0]]
        chosen = self._chosen(intercept, prior, groups) if ridge is None else [ridge] * len(groups)
        found = {value: regression(whole, value, intercept, prior) for value in set(chosen)}
        columns = torch.split(torch.arange(sum(groups)), list(groups))
        parts = [(found[value], own.to(whole.x.device)) for value, own in zip(chosen, columns)]  # type: ignore[union-attr]
        return Linear(
            torch.cat([fit.matrix[own] for fit, own in parts]),
            torch.cat([fit.intercept[own] for fit, own in parts]),
            torch.cat([fit.errors[own] for fit, own in parts]),
        ), chosen

    def _chosen(self, intercept: bool, prior: Tensor | None, groups: Sequence[int]) -> list[float]:
        used = [part for part in self.parts if float(part.weight) > 0]
        if len(used) == 1:
            return [WITHOUT_FOLDS] * len(groups)
        held_out = len(used)
        if len(torch.as_tensor(used[0].x)) > MANY:
            columns, groups = _sample(groups)
            used, held_out = [_of_columns(part, columns) for part in used], 1
            prior = None if prior is None else prior[columns.to(prior.device)]
        rest = [total([other for other in used if other is not part]) for part in used[:held_out]]
        errors = []
        for ridge in RIDGES:
            pairs = zip(used, rest)
            left = torch.stack([squared_errors(part, regression(r, ridge, intercept, prior)) for part, r in pairs])
            errors.append([float(group.sum()) for group in torch.split(left.sum(0), list(groups))])
        return [min(zip(column, RIDGES))[1] for column in zip(*errors)]


def _sample(groups: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Every n-th column of each group, so that at most COLUMNS are left; their numbers."""
    found = [own[:: -(-len(own) // COLUMNS)] for own in torch.split(torch.arange(sum(groups)), list(groups))]
    return torch.cat(found), [len(own) for own in found]


def _of_columns(moments: Moments, columns: Tensor) -> Moments:
    """The moments with only these columns of y."""
    found = Moments()
    found.weight, found.x, found.xx = moments.weight, moments.x, moments.xx
    y, xy, yy = (torch.as_tensor(value) for value in (moments.y, moments.xy, moments.yy))
    at = columns.to(y.device)
    found.y, found.xy, found.yy = y[at], xy[:, at], yy[at]
    return found


def total(parts: Sequence[Moments]) -> Moments:
    """The moments of the rows of all parts."""
    found = Moments()
    for part in parts:
        for name in ("weight", "x", "y", "xx", "xy", "yy"):
            setattr(found, name, getattr(found, name) + getattr(part, name))
    return found


def squared_errors(moments: Moments, fit: Linear) -> Tensor:
    """Sum w (y - B x - a)^2 over the rows of `moments`, for every column of y, [q]."""
    B, a = fit.matrix, fit.intercept
    xx, xy, yy, x, y = (torch.as_tensor(v) for v in (moments.xx, moments.xy, moments.yy, moments.x, moments.y))
    left = yy - 2 * (B * xy.T).sum(1) + (B @ xx * B).sum(1)
    found: Tensor = left - 2 * a * y + 2 * a * (B @ x) + moments.weight * a.square()
    return found
