"""What a person sees in the terminal: the score table, the sweep table, comparisons, what a check found."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from fsmerge_cli.common.errors import OutputError


def score_table(evaluation: Mapping[str, Any]) -> Table:
    """The rows of evaluation.json: sources, ensemble, average, merged; per task, mean and joint."""
    from fsmerge_cli.reporting.summary import shown_rows  # imports torch

    tasks = evaluation["tasks"]
    made = "" if evaluation["method"] == "unknown" else f" ({evaluation['method']})"
    table = Table(title=f"Right answers on test images, %{made}", title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in [*tasks, "mean", "joint", "joint (logits)"]:
        table.add_column(Text(name), justify="right")
    for name, row in shown_rows(evaluation).items():
        cells = [row["tasks"].get(task, {}).get("top1") for task in tasks]
        cells += [row["mean_top1"], row["joint_top1"].get("softmax"), row["joint_top1"].get("logits")]
        label = f"{name} (source)" if name in tasks else _row_name(evaluation, name)
        table.add_row(Text(label), *map(per_cent, cells), style="bold" if name == "merged" else None)
    return table


def task_table(evaluation: Mapping[str, Any], name: str = "merged") -> Table:
    """One row of evaluation.json task by task: interval, top 5, loss and calibration."""
    from fsmerge_cli.reporting.summary import PROTOCOLS

    table = Table(title=f"{_row_name(evaluation, name)}, by task", title_justify="left")
    table.add_column("task", no_wrap=True)
    for title in ("images", "top 1", "95 % interval", "top 5", "loss", "calibration error"):
        table.add_column(title, justify="right")
    row = evaluation["rows"][name]
    for task, found in row["tasks"].items():
        low, high = found["interval"]
        cells = [str(found["count"]), per_cent(found["top1"]), f"{per_cent(low)} - {per_cent(high)}"]
        cells += [per_cent(found["top5"]), f"{found['loss']:.3f}", per_cent(found["calibration_error"])]
        table.add_row(Text(task), *cells)
    joint = row["joint_top1"]
    if joint:
        said = [f"{words} {per_cent(joint[name])}" for name, words in PROTOCOLS.items() if name in joint]
        table.caption = f"joint: {', '.join(said)}"
    return table


def _row_name(evaluation: Mapping[str, Any], name: str) -> str:
    """A row as it is called: what was made elsewhere is no merged model, as far as known."""
    return "model" if name == "merged" and evaluation["method"] == "unknown" else name


def summary_line(evaluation: Mapping[str, Any]) -> str:
    """Steps, trained numbers and seconds of one run, in one line."""
    cost = evaluation["cost"]
    seconds = sum(cost["seconds"].values())
    joint = any(row["joint_top1"] for row in evaluation["rows"].values())
    line = f"{cost['steps']} steps, {cost['trained_parameters']:,} numbers trained, {cost['images']} images, "
    explained = " Joint: the right answer among the labels of all tasks, by each head's softmax." if joint else ""
    return f"{line}{seconds:.1f} s.{explained}"


def sweep_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """One line per job of a sweep."""
    tasks = list(dict.fromkeys(name for job in jobs for name in job.get("tasks", {})))
    table = Table(title="All runs, right answers of the merged model on test images, %", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in [*tasks, "mean", "joint", "seconds"]:
        table.add_column(Text(name), justify="right")
    for job, label in zip(jobs, distinct([job["run"] for job in jobs])):
        if job["exit_code"]:
            table.add_row(Text(label), *["-"] * (len(tasks) + 2), Text(f"failed ({job['exit_code']})"))
        else:
            cells = [*(job["tasks"].get(task) for task in tasks), job["mean"], job["joint"]]
            table.add_row(Text(label), *map(per_cent, cells), f"{job['seconds']:.1f}")
    return table


def distinct(runs: Sequence[str]) -> list[str]:
    """What tells runs apart: their settings without those that all of them share.

    >>> distinct(["models=a seed=0", "models=a seed=1"])
    ['seed=0', 'seed=1']
    """
    settings = [run.split() for run in runs]
    shared = set.intersection(*map(set, settings)) if len(runs) > 1 else set()
    return [" ".join(part for part in own if part not in shared) or run for own, run in zip(settings, runs)]


def per_cent(value: float | None) -> str:
    """A share as per cent with one decimal; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


SHOWN = ("mean", "joint", "joint_calibrated", "seconds", "difference")
"""Columns of a comparison beside the tasks' accuracies; all others are for CSV and JSON, there is no room."""


def compare_table(rows: Sequence[Mapping[str, Any]], sort: str = "mean") -> Table:
    """One line per run, as `fsmerge compare` sorted them."""
    table = Table(title="Right answers on test images, %", title_justify="left")
    names = dict.fromkeys(name for row in rows for name in row)
    tasks = [name for name in names if name.startswith("top1.")]
    columns = ["run", *tasks, *(n for n in names if n in (*SHOWN, sort) and n not in tasks)]
    for name in columns:
        title = Text(name.removeprefix("top1.").replace("_", " "))
        wide = {"justify": "left", "min_width": 16} if name == "run" else {"justify": "right"}
        table.add_column(title, overflow="fold", **wide)
    for row in rows:
        table.add_row(*(Text(_compared(row, name)) for name in columns))
    return table


SHARES = ("top1", "top5", "mean", "relative", "joint", "joint_calibrated", "joint_logits")
"""Metrics, or what stands before `.TASK`, that are shown as per cent."""


def _compared(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if name == "run":
        return str(value)
    if name == "difference":
        low, high = row["difference_low"], row["difference_high"]
        return "" if value is None else f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    if name.partition(".")[0] in SHARES:
        return per_cent(value)
    return "-" if value is None else f"{value:.1f}" if name == "seconds" else f"{value:,.5g}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the names of all their columns. Raises OutputError."""
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}. Choose another --csv FILE.") from None


COLUMNS = ("width", "depth", "heads", "patch", "classes")


def source_table(inspection: Mapping[str, Any]) -> Table:
    """The sources of an inspection, one row each; mean and deviation as their means over the channels."""
    table = Table(
        title="Sources (norm.: mean/deviation of the pixels)", title_justify="left", box=SIMPLE, padding=0
    )
    for name in ("source", "architecture", *COLUMNS, "norm.", "dtype", "numbers", "MB"):
        right = name in (*COLUMNS, "numbers", "MB")
        table.add_column(name, overflow="fold", justify="right" if right else "left")
    for row in inspection["rows"]:
        patch = "x".join(map(str, row["patch"])) if row["patch"] else None
        sizes = [patch if name == "patch" else row[name] for name in COLUMNS]
        size = "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f}"
        mean, std = (sum(values) / len(values) for values in (row["mean"], row["std"]))
        norm = "none" if (mean, std) == (0.0, 1.0) else f"{mean:.2f}/{std:.2f}"
        cells = [row["name"], row["architecture"], *("-" if value is None else str(value) for value in sizes)]
        table.add_row(*map(Text, [*cells, norm, row["dtype"], f"{row['parameters'] / 1e6:,.2f}M", size]))
    return table


def check_lines(inspection: Mapping[str, Any]) -> list[str]:
    """What an inspection says below its table: where the sources come from, and what may be done."""
    lines = [f"{row['name']}: {row['state']}" for row in inspection["rows"]]
    if inspection["reasons"]:
        return lines
    if inspection["verdict"]:
        cosines = ", ".join(f"{cosine:.2f}" for cosine in inspection["similarity"])
        lines.append(f"similarity to source 1: {cosines}; {inspection['verdict']}")
    fit = [method["name"] for method in inspection["methods"] if method["why_not"] is None]
    lines.append(f"methods that apply: {', '.join(fit)}")
    lines += [f"  not {m['name']}: {m['why_not']}" for m in inspection["methods"] if m["why_not"]]
    lines.append(f"start with: {inspection['recommended']} ({inspection['why']})")
    needs = []
    if inspection["memory"] is not None:
        needs.append(f"about {inspection['memory'] / 1e9:.1f} GB of memory at its peak")
    if inspection["seconds"] is not None:
        needs.append(f"about {duration(inspection['seconds'])} of computing")
    if needs:
        lines.append(f"method={inspection['method']} as asked: {', '.join(needs)}")
    return [*lines, *(f"note: {note}" for note in inspection["notes"])]


def duration(seconds: float) -> str:
    """A time in the unit that fits it.

    >>> duration(0.2), duration(75), duration(600), duration(7200)
    ('1 s', '75 s', '10 min', '2.0 h')
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
