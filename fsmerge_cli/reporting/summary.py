"""evaluation.json as sentences and tables, for the report page and the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsmerge_cli.evaluation.metrics import interval
from fsmerge_cli.reporting.agreement import agreement as agreement
from fsmerge_cli.reporting.agreement import counted_word as counted_word
from fsmerge_cli.reporting.agreement import images_in_words as images_in_words
from fsmerge_cli.reporting.agreement import of_probes, sentences, values_by_row
from fsmerge_cli.reporting.agreement import own_word as own_word
from fsmerge_cli.reporting.measures import column, correlation, is_measured, mean_correlation, outcome
from fsmerge_cli.reporting.measures import details_in_words as details_in_words
from fsmerge_cli.reporting.measures import has_accuracies as has_accuracies
from fsmerge_cli.reporting.measures import has_joint as has_joint
from fsmerge_cli.reporting.measures import has_numbers as has_numbers
from fsmerge_cli.reporting.measures import measures as measures
from fsmerge_cli.reporting.measures import score_title as score_title

Values = Mapping[str, Any]

NONE = "-"
"""In place of a value that does not apply."""

PROTOCOLS = {
    "softmax": "softmax per head",
    "logits": "raw logits",
    "softmax_calibrated": "calibrated softmax per head",
    "logits_calibrated": "calibrated logits",
    "classifier": "as `predict` decides",
}
"""How the joint prediction is made, in words."""

JOINT = "the task is not given: the prediction is the best label over all tasks"
"""What joint accuracy means."""

STAGE_FIGURE = re.compile(
    r"(read_error|stream_error|units|heads|logits_kept|ridge)(?:_(\d+))?(?:_source_(\d+)|_([a-z]+))?"
)
"""A fact of one stage: its name, the place in the order of such facts, the source, or the kind of ridge."""


@dataclass(frozen=True)
class Table:
    """Cells as text, not yet escaped. The first `text_columns` columns hold text, all others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def number(value: float | None, digits: int = 3) -> str:
    """With `digits` significant digits; a dash for None and non-finite values.

    >>> number(0.00012345), number(1234567.0), number(None)
    ('0.000123', '1.23e+06', '-')
    """
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def fixed(value: float | None, digits: int = 3) -> str:
    """With `digits` decimals; a dash for None and non-finite values."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def per_cent(value: float | None) -> str:
    """A share in per cent, one decimal, without the sign; a dash for None."""
    return fixed(None if value is None else 100 * value, 1)


def ranged(value: float | None, limits: Sequence[float] | None) -> str:
    """A share in per cent, with its interval if it has one."""
    return per_cent(value) + (f" ({per_cent(limits[0])} to {per_cent(limits[1])})" if limits else "")


def shown_rows(evaluation: Values) -> dict[str, Values]:
    """The rows to show: without a row (average, kd) that is the merged model itself."""
    rows = dict(evaluation["rows"])
    method = evaluation["method"]
    if method in rows and rows[method] == rows.get("merged"):
        rows.pop(method)
    return rows


def row_name(evaluation: Values, name: str) -> str:
    """The name of a row in a table."""
    if name in evaluation["tasks"]:
        return f"{name} (source)"
    return {"average": "plain average", "kd": "distillation, same budget"}.get(name, name)


def joint_interval(row: Values, protocol: str) -> tuple[float, float] | None:
    """Wilson interval of a joint accuracy, over all labelled test images."""
    share, count = row["joint_top1"].get(protocol), sum(task["count"] for task in row["tasks"].values())
    return interval(round(share * count), count) if share is not None and count else None


def verdict(evaluation: Values) -> list[str]:
    """The result in a few sentences, and whether the merge used auxiliary unlabelled data."""
    return [own_word(evaluation, text) for text in (*_outcome(evaluation), *_auxiliary_data(evaluation))]


def _auxiliary_data(evaluation: Values) -> list[str]:
    """A sentence on auxiliary unlabelled data, if the merge used any."""
    if "method" not in evaluation["config"]:  # of `fsmerge evaluate`: its data are not those of the merge
        return []
    data = evaluation["config"].get("data") or {}
    name, other = data.get("name"), (data.get("auxiliary") or {}).get("name")
    if not evaluation["cost"]["images"] or (other is None and name not in ("none", "generated")):
        return []
    kind = "generated images" if other in (None, "generated") else f"auxiliary unlabelled images (data={other})"
    if name in ("none", "generated") or data.get("images_per_task") == 0:
        return [f"The merge used no images of its tasks, only {kind}."]
    return [f"In addition to images of its tasks, the merge used {kind}."]


def _outcome(evaluation: Values) -> list[str]:
    rows = evaluation["rows"]
    merged, ensemble = rows.get("merged", {}), rows.get("ensemble", {})
    model = "The model" if evaluation["method"] == "unknown" else "The merged model"
    first = outcome(evaluation, model)
    if first is None:
        return sentences(evaluation, model) or ["Nothing was evaluated: there were no images to measure with."]
    parts = [first]
    others = {"average": "The plain average of the sources' weights", "kd": "Distillation with the same budget"}
    for name, what in others.items():
        row = shown_rows(evaluation).get(name, {})
        found = [] if row.get("mean_top1") is None else [f"{per_cent(row['mean_top1'])} %"]
        found += [] if (pearson := mean_correlation(row)) is None else [f"a correlation of {correlation(pearson)}"]
        if found:
            parts.append(f"{what} reaches {' and '.join(found)}.")
    joint, bound = (row.get("joint_top1", {}).get("softmax") for row in (merged, ensemble))
    if joint is not None:
        reference = f"; that of the ensemble of the sources is {per_cent(bound)} %" if bound is not None else ""
        parts.append(f"{model}'s joint accuracy ({JOINT}) is {per_cent(joint)} %{reference}.")
    return [*parts, *of_probes(evaluation)]


def agreements(evaluation: Values) -> Table | None:
    """Agreement of every model with the source of each task, or the cosine without heads; None without either."""
    rows = shown_rows(evaluation)
    measure, found = values_by_row(evaluation, rows)
    shown = per_cent if measure.endswith("%") else fixed
    cells = [[row_name(evaluation, name), *map(shown, values)] for name, values in found.items()]
    return Table([measure, *evaluation["tasks"], "mean"], cells) if cells else None


def scores(evaluation: Values) -> Table | None:
    """Top-1 accuracy of every model on every task, with intervals, mean and joint; None without labels.

    Of a task of numbers it is Pearson's correlation, which is in no mean.
    """
    tasks, rows = evaluation["tasks"], shown_rows(evaluation)
    if not any(map(is_measured, rows.values())):
        return None
    protocols = [p for p in PROTOCOLS if any(p in row["joint_top1"] for row in rows.values())]
    cells, classes = [], int(has_accuracies(evaluation))
    for name, row in rows.items():
        cells.append(
            [row_name(evaluation, name)]
            + [_score(row, task) for task in tasks]
            + [per_cent(row["mean_top1"])] * classes
            + [ranged(row["joint_top1"].get(p), joint_interval(row, p)) for p in protocols]
        )
    titles = [column(evaluation, task) for task in tasks]
    return Table(["model", *titles, *["mean"] * classes, *(f"joint, {PROTOCOLS[p]}" for p in protocols)], cells)


def _score(row: Values, task: str) -> str:
    if task in row["tasks"]:
        return ranged(row["tasks"][task]["top1"], row["tasks"][task]["interval"])
    return correlation(row.get("numbers", {}).get(task, {}).get("pearson"))


def details(evaluation: Values) -> Table | None:
    """Further metrics of the merged model by task; None without test images."""
    row = evaluation["rows"].get("merged")
    if row is None:
        return None
    numbers, classes = row.get("numbers", {}), bool(row["tasks"]) or not row.get("numbers")
    found = []
    for task in evaluation["tasks"]:
        own = row["tasks"].get(task) or numbers.get(task, {})
        agreed = evaluation["predictions"].get(task, {})
        images = agreed.get("images")
        same = per_cent(agreed["same_as_source"] / images if images else None)
        of_numbers = {name.title(): correlation(own.get(name)) for name in ("pearson", "spearman")}
        found.append(
            {"task": task, counted_word(evaluation, "images"): str(own.get("count", images or NONE))}
            | {"% of source": per_cent(own.get("relative"))}
            | ({"% equal to source": same, "top-5 %": per_cent(own.get("top5"))} if classes else {})
            | {"loss": fixed(own.get("loss")), **(of_numbers if numbers else {})}
            | ({"calibration error": fixed(own.get("calibration_error"))} if classes else {})
            | {f"feature {n}": fixed(row[f"feature_{n.lower()}"].get(task)) for n in ("error", "cosine", "CKA")}
        )
    return Table([*found[0]], [[*cells.values()] for cells in found])


def similarity(evaluation: Values) -> Table | None:
    """CKA, cosine and relative error by layer and task; None without test images."""
    found = {
        task: evaluation["similarity"][task] for task in evaluation["tasks"] if task in evaluation["similarity"]
    }
    layers = list(dict.fromkeys(layer for own in found.values() for layer in own))
    if not layers:
        return None
    cells = []
    for layer in layers:
        values = [own.get(layer, {}) for own in found.values()]
        cells.append(
            [layer, *(" / ".join(fixed(v.get(n), 2) for n in ("cka", "cosine", "error")) for v in values)]
        )
    return Table(["layer", *found], cells)


def chosen_tasks(evaluation: Values, name: str, protocol: str) -> dict[str, dict[str, tuple[float, int]]]:
    """By task of the image and task of the predicted label: share of the task's images, and number of images."""
    found = evaluation["rows"].get(name, {}).get("chosen_tasks", {}).get(protocol, {})
    return {
        task: {other: (count / (sum(own.values()) or 1), count) for other, count in own.items()}
        for task, own in found.items()
    }


def confusion(evaluation: Values, name: str, protocol: str) -> Table | None:
    """Tasks of the predicted labels, in per cent of the images of each task; None for fewer than two heads."""
    found = chosen_tasks(evaluation, name, protocol)
    if not found:
        return None
    columns = list(next(iter(found.values())))
    cells = [[task, *(f"{per_cent(s)} ({n:,})" for s, n in own.values())] for task, own in found.items()]
    return Table([counted_word(evaluation, "images of"), *columns], cells)


def mistakes(evaluation: Values, task: str) -> Table:
    """The most frequently confused labels of one task."""
    pairs = evaluation["predictions"].get(task, {}).get("pairs", ())
    cells = [[pair["label"], pair["prediction"], str(pair["count"]), str(pair["source"])] for pair in pairs]
    return Table(["label", "predicted", "merged", "source"], cells, 2)


def cost(evaluation: Values) -> Table:
    """The cost of the run: images, steps, parameters, memory and seconds."""
    found = evaluation["cost"]
    rate, memory = found["images_per_second"], found["peak_memory_bytes"]
    cells = [
        [own_word(evaluation, "unlabelled images (views included)"), f"{found['images']:,}"],
        ["training steps", f"{found['steps']:,}"],
        ["trainable parameters", f"{found['trained_parameters']:,}"],
        ["parameters of the merged backbone", f"{found['merged_parameters']:,}"],
        [own_word(evaluation, "training images per second"), NONE if rate is None else f"{rate:,.0f}"],
        ["peak memory", NONE if memory is None else f"{memory / 1e9:.2f} GB"],
        *([f"seconds: {phase}", f"{seconds:,.2f}"] for phase, seconds in found["seconds"].items()),
        ["seconds in total", f"{sum(found['seconds'].values()):,.2f}"],
        *(
            [name.replace("_", " "), number(value)]
            for name, value in evaluation["facts"].items()
            if not STAGE_FIGURE.fullmatch(name)
        ),
    ]
    return Table(["", ""], cells)


def certificates(evaluation: Values) -> Table | None:
    """Every certificate with its error and tolerance; None before the files are written."""
    cells = [
        [name, c["what"], c["status"], number(c.get("error")), number(c.get("tolerance"))]
        for name, c in evaluation["certificates"].items()
    ]
    return Table(["certificate", "compared", "status", "largest error", "tolerance"], cells, 3) if cells else None


def versions(evaluation: Values) -> str:
    """Versions that the results depend on, in one line."""
    found = evaluation["provenance"]
    parts = [f"{name} {version}" for name, version in found["versions"].items()]
    if found["processes"] > 1:
        parts.append(f"{found['processes']} processes")
    return ", ".join(parts)
