"""Accuracies of the benchmark's rows, their differences, and the intervals of both."""

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
"""Seeds, mean difference, half of its interval."""

METHODS = ("average", "activation_matching", "zipit", "regmean", "fs_merge_paper", "kd", "fs_merge")
"""What is measured, in this order in every table."""

LEVEL = 0.95


def answers(row: Row) -> dict[str, npt.NDArray[np.float64]]:
    """Which test images of every task were answered rightly, 0 or 1."""
    return {
        task: np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8))[: row["counts"][task]].astype(float)
        for task, bits in row["right"].items()
    }


def difference(found: Sequence[Row], others: Sequence[Row]) -> Gap | None:
    """Mean difference of accuracy with its interval: over the seeds that both have, image by image."""
    by_seed = {row["seed"]: row for row in others}
    pairs = [(row, by_seed[row["seed"]]) for row in found if row["seed"] in by_seed]
    if not pairs:
        return None
    gaps = [{t: a[t] - b[t] for t in a} for a, b in ((answers(x), answers(y)) for x, y in pairs)]
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
    value, half = _spread([{t: a / row["sources"][t] for t, a in answers(row).items()} for row in found])
    return 100 * (value - half), 100 * (value + half)


def _spread(values: Sequence[Mapping[str, npt.NDArray[np.float64]]]) -> tuple[float, float]:
    """Mean over seeds, tasks and images, and half of its interval.

    Images are drawn once for all seeds, so their share of the error is that of the mean over seeds. The seeds' own
    share is added where there are several, with Student's factor for so few.
    """
    tasks = values[0].keys()
    over_seeds = {task: np.mean([own[task] for own in values], axis=0) for task in tasks}
    value = float(np.mean([own.mean() for own in over_seeds.values()]))
    images = sum(float(own.var()) / len(own) for own in over_seeds.values()) / len(over_seeds) ** 2
    means = [float(np.mean([own[task].mean() for task in tasks])) for own in values]
    seeds = statistics.variance(means) / len(means) if len(means) > 1 else 0.0
    few = stats.t.ppf((1 + LEVEL) / 2, len(means) - 1) if len(means) > 1 else 0.0
    return value, float((stats.norm.ppf((1 + LEVEL) / 2) ** 2 * images + few**2 * seeds) ** 0.5)
