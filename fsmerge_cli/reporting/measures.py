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


def has_numbers(evaluation: Values) -> bool:
    """Whether a row has the correlation of a task of numbers."""
    return any(row.get("numbers") for row in evaluation["rows"].values())


def has_accuracies(evaluation: Values) -> bool:
    """Whether a row has the accuracy of a task of classes."""
    return any(row["tasks"] for row in evaluation["rows"].values())


def has_joint(evaluation: Values) -> bool:
    """Whether a row has a joint accuracy."""
    return any(row["joint_top1"] for row in evaluation["rows"].values())


def measures(row: Values) -> str:
    """What a row is measured by, in words."""
    return " and ".join(["accuracy"] * bool(row["tasks"]) + ["correlation"] * bool(row.get("numbers")))


def score_title(evaluation: Values) -> str:
    """What the score table holds, as a title."""
    if not has_numbers(evaluation):
        return "Top-1 accuracy"
    return "Top-1 accuracy and correlation" if has_accuracies(evaluation) else "Correlation with the labels"


def details_in_words(evaluation: Values) -> str:
    """What the first columns of the table of metrics by task are."""
    same = " “% equal to source”: images on which merged model and source predict the same label."
    if not has_numbers(evaluation):
        return f"“% of source”: of the source's top-1 accuracy. Loss: cross-entropy, in nats.{same}"
    if not has_accuracies(evaluation):
        return "“% of source”: of the source's Pearson correlation. Loss: squared error."
    return (
        "“% of source”: of the source's top-1 accuracy, or of its Pearson correlation where a number is "
        "predicted. Loss: cross-entropy, in nats; of numbers the squared error." + same
    )


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
