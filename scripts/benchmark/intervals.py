"""Accuracies of the benchmark's rows and their differences, with confidence intervals."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Row = Mapping[str, Any]
Cell = tuple[str, str]
"""Group, images per task."""

Gap = tuple[int, float, float]
"""Number of seeds, mean difference, half-width of its interval."""

METHODS = (
    "average",
    "activation_matching",
    "zipit",
    "regmean",
    "fs_closed_form",
    "fs_closed_form_trained",
    "fs_merge_paper",
    "kd",
    "fs_merge",
)
"""The measured methods, in the order of every table."""

LEVEL = 0.95


def correct_images(row: Row) -> dict[str, npt.NDArray[np.float64]]:
    """For every task, 1 for each test image that is classified correctly and 0 for the others."""
    return {
        task: np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8))[: row["counts"][task]].astype(float)
        for task, bits in row["right"].items()
    }


def difference(found: Sequence[Row], others: Sequence[Row]) -> Gap | None:
    """Mean paired difference of accuracy with its interval, over the seeds that both have."""
    by_seed = {row["seed"]: row for row in others}
    pairs = [(row, by_seed[row["seed"]]) for row in found if row["seed"] in by_seed]
    if not pairs:
        return None
    gaps = [{t: a[t] - b[t] for t in a} for a, b in ((correct_images(x), correct_images(y)) for x, y in pairs)]
    return len(pairs), *_spread(gaps)


def text_of(gap: Gap | None) -> str:
    """A difference in points, with its interval."""
    if gap is None:
        return "-"
    _, value, half = gap
    return f"{100 * value:+.1f} [{100 * (value - half):+.1f}, {100 * (value + half):+.1f}]"


def relative(found: Sequence[Row]) -> float:
    """Per cent of the sources' accuracy, mean over tasks and seeds, as `mean_relative` of evaluation.json."""
    return 100 * statistics.mean(
        row["tasks"][task] / row["sources"][task] for row in found for task in row["tasks"]
    )


def relative_interval(found: Sequence[Row]) -> tuple[float, float]:
    """95 % interval of the per cent of the sources' accuracy."""
    value, half = _spread([{t: a / row["sources"][t] for t, a in correct_images(row).items()} for row in found])
    return 100 * (value - half), 100 * (value + half)


def _spread(values: Sequence[Mapping[str, npt.NDArray[np.float64]]]) -> tuple[float, float]:
    """Mean over seeds, tasks and images, and the half-width of its interval.

    All seeds share the test images, so the variance over images is that of the mean over seeds. With several seeds
    the variance over seeds is added, with the quantile of Student's t distribution.
    """
    tasks = values[0].keys()
    over_seeds = {task: np.mean([seed[task] for seed in values], axis=0) for task in tasks}
    value = float(np.mean([images.mean() for images in over_seeds.values()]))
    over_images = sum(float(own.var()) / len(own) for own in over_seeds.values()) / len(over_seeds) ** 2
    means = [float(np.mean([seed[task].mean() for task in tasks])) for seed in values]
    between_seeds = statistics.variance(means) / len(means) if len(means) > 1 else 0.0
    quantile = stats.t.ppf((1 + LEVEL) / 2, len(means) - 1) if len(means) > 1 else 0.0
    variance = stats.norm.ppf((1 + LEVEL) / 2) ** 2 * over_images + quantile**2 * between_seeds
    return value, float(variance**0.5)
