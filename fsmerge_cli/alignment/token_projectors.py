"""Token projectors: from the patch tokens of one network to those of another, by ridge regression."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fsmerge_cli.alignment.closed_form.folds import FoldMoments, folds_of

MAX_IMAGES = 256
"""Images that a token projector is fitted on."""


def fitted(pairs: Iterable[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """Weight [d_i, d'] and bias [d_i] from tokens [n, T, d'] and [n, T, d_i] of `count` images, in parts.

    The ridge is chosen by cross-validation over images. fp32, on the CPU.
    """
    sums, folds, start = FoldMoments(), folds_of(count, count), 0
    for x, y in pairs:
        sums.add(x.flatten(0, 1).float().cpu(), y.flatten(0, 1).float().cpu(), folds[start : start + len(x)])
        start += len(x)
    found, _ = sums.fit(None)
    return found.matrix.float(), found.intercept.float()
