"""What a user can set about the closed form."""

from __future__ import annotations

from dataclasses import dataclass

ROWS_PER_UNIT = 100
"""Rows per regressor from which a regression is fitted, where there are more."""


@dataclass(frozen=True)
class ClosedFormOptions:
    """Options of the closed form.

    ridge: of every regression, relative to the mean variance of the regressors; None: chosen by cross-validation
    over the images. correct: every layer that writes into the stream is fitted to what is missing there, errors of
    earlier layers included; without it, all weights are sum_i M_i W_i U_i. row_weights: rows count by how much the
    features depend on them. rows_per_unit: tokens, or positions of an image, per regressor that a layer is fitted
    to, where there are more. batch: largest number of images per pass. seed: of the random projections behind the
    row weights.
    """

    ridge: float | None = None
    correct: bool = True
    row_weights: bool = True
    rows_per_unit: float = ROWS_PER_UNIT
    batch: int = 32
    seed: int = 0


FLOOR = 0.1
"""Added to every relative row weight, so that no token on which the features depend is without weight."""
