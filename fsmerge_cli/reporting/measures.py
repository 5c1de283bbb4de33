"""Measures of the rows of evaluation.json: tasks of classes have accuracies, tasks of numbers correlations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

NONE = "-"


def is_measured(row: Values) -> bool:
    """Whether a row has an accuracy or a correlation."""
    return bool(row["tasks"] or row.get("numbers"))


def column(evaluation: Values, task: str) -> str:
    """The title of a task's column; of a task of numbers with the name of its measure."""
    of_number = any(task in row.get("numbers", {}) for row in evaluation["rows"].values())
    return f"{task} (Pearson)" if of_number else task


def correlation(value: float | None) -> str:
    """A correlation, three decimals; a dash for None."""
    return NONE if value is None else f"{value:.3f}"


def mean_correlation(row: Values) -> float | None:
    """The mean of Pearson's correlations over the tasks of numbers; None without one."""
    found = [own["pearson"] for own in row.get("numbers", {}).values()]
    return sum(found) / len(found) if found and None not in found else None


def outcome(evaluation: Values, model: str) -> str | None:
    """The accuracy, the correlation, and both relative to the sources, as a sentence; None without either."""
    row = evaluation["rows"].get("merged", {"tasks": {}, "mean_top1": None})
    top1, pearson, kept = row["mean_top1"], mean_correlation(row), row.get("mean_relative")
    several = len(evaluation["tasks"]) > 1
    parts, measures = [], []
    if top1 is not None:
        of = "its tasks of classes" if pearson is not None else "its tasks"
        over = f" (mean over {of})" if several else ""
        parts.append(f"a top-1 accuracy of {100 * top1:.1f} %{over}")
        measures.append("accuracy")
    if pearson is not None:
        of = "its tasks of numbers" if top1 is not None else "its tasks"
        over = f" (mean over {of})" if several else ""
        parts.append(f"a Pearson correlation of {pearson:.3f} with the labels{over}")
        measures.append("correlation")
    if not parts:
        return None
    text = f"{model} has {' and '.join(parts)}"
    return (
        f"{text}: {100 * kept:.1f} % of its sources' {' and '.join(measures)}." if kept is not None else f"{text}."
    )
