from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form import folds as folds_module
from fsmerge_cli.alignment.closed_form.folds import (
    FOLDS,
    RIDGES,
    WITHOUT_FOLDS,
    FoldMoments,
    folds_of,
    squared_errors,
    total,
)
from fsmerge_cli.alignment.closed_form.moments import Moments, regression


def ridge_fit(x: Tensor, y: Tensor, w: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression with intercept, as one least squares problem with more rows."""
    share = w / w.sum()
    mx, my = share @ x, share @ y
    rows = share.sqrt()[:, None]
    strength = ridge * (share @ (x - mx).square()).mean()
    more = strength.sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    A = torch.cat([rows * (x - mx), more])
    B = torch.linalg.lstsq(A, torch.cat([rows * (y - my), torch.zeros(len(more), y.shape[1]).to(y)])).solution
    return B, my - mx @ B


def rows_of(images: int, per_image: int, signal: float) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(images * per_image, 7, generator=random, dtype=torch.float64)
    noise = torch.randn(images * per_image, 4, generator=random, dtype=torch.float64)
    y = noise.clone()
    y[:, :2] = signal * x[:, :2] + 0.1 * noise[:, :2]
    return x, y, torch.rand(len(x), generator=random, dtype=torch.float64)


def test_all_copies_of_an_image_are_in_its_fold() -> None:
    folds = folds_of(6, 24)
    assert folds[:6].tolist() == [0, 1, 2, 3, 0, 1]
    assert folds[6:].view(6, 3).tolist() == [[fold] * 3 for fold in folds[:6].tolist()]
    assert folds_of(3, 3).tolist() == [0, 1, 2]


def test_the_ridge_of_every_group_is_the_best_on_the_images_that_were_not_fitted() -> None:
    x, y, w = rows_of(10, 3, signal=2.0)
    folds = folds_of(10, 10)
    sums = FoldMoments()
    for part in (slice(0, 4), slice(4, 10)):
        rows = slice(3 * part.start, 3 * part.stop)
        sums.add(x[rows], y[rows], folds[part], w[rows])
    fold = folds.repeat_interleave(3)
    expected = []
    for columns in (slice(0, 2), slice(2, 4)):
        left = {}
        for ridge in RIDGES:
            left[ridge] = 0.0
            for place in range(FOLDS):
                fit, held = fold != place, fold == place
                B, a = ridge_fit(x[fit], y[fit][:, columns], w[fit], ridge)
                left[ridge] += float((w[held] @ (y[held][:, columns] - x[held] @ B - a).square()).sum())
        expected.append(min(left, key=lambda ridge: left[ridge]))
    found, chosen = sums.fit(None, groups=[2, 2])
    assert chosen == expected
    assert chosen[0] < chosen[1] == max(RIDGES)  # noise is not fitted
    for columns, ridge in zip((slice(0, 2), slice(2, 4)), chosen):
        B, a = ridge_fit(x, y[:, columns], w, ridge)
        torch.testing.assert_close(found.matrix[columns], B.T)
        torch.testing.assert_close(found.intercept[columns], a)


def test_a_given_ridge_is_that_of_all_groups() -> None:
    x, y, w = rows_of(6, 2, signal=1.0)
    sums, whole = FoldMoments(), Moments()
    sums.add(x, y, folds_of(6, 6), w)
    whole.add(x, y, w)
    found, chosen = sums.fit(1e-2, groups=[1, 3])
    assert chosen == [1e-2, 1e-2]
    for mine, own in zip(vars(found).values(), vars(regression(whole, 1e-2)).values()):
        torch.testing.assert_close(mine, own)


def test_the_errors_of_a_fit_are_those_of_its_rows() -> None:
    x, y, w = rows_of(6, 2, signal=1.0)
    fit = regression(_moments(x[:8], y[:8], w[:8]), 1e-3)
    expected = w[8:] @ (y[8:] - x[8:] @ fit.matrix.T - fit.intercept).square()
    torch.testing.assert_close(squared_errors(_moments(x[8:], y[8:], w[8:]), fit), expected)


def test_a_single_image_cannot_be_held_out() -> None:
    x, y, w = rows_of(1, 9, signal=1.0)
    sums = FoldMoments()
    sums.add(x, y, folds_of(1, 1), w)
    assert sums.fit(None)[1] == [WITHOUT_FOLDS]


def _moments(x: Tensor, y: Tensor, w: Tensor) -> Moments:
    found = Moments()
    found.add(x, y, w)
    return found


def test_with_many_regressors_the_ridge_is_chosen_on_one_fold_and_some_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y, weights = rows_of(8, 2, 3.0)
    sums = FoldMoments()
    sums.add(x, y, folds_of(8, 8), weights)
    everything = sums.fit(None)[1]
    monkeypatch.setattr(folds_module, "MANY", 6)
    monkeypatch.setattr(folds_module, "COLUMNS", 1)
    fit, chosen = sums.fit(None)
    held_out, rest = sums.parts[0], total(sums.parts[1:])
    left = {ridge: float(squared_errors(held_out, regression(rest, ridge))[0]) for ridge in RIDGES}
    assert chosen == [min(left, key=lambda ridge: left[ridge])]
    assert chosen != everything  # the noise of the other columns wants a larger ridge
    torch.testing.assert_close(fit.matrix, regression(total(sums.parts), chosen[0]).matrix)
