"""Tables and lines in the terminal: scores, sweeps, comparisons, and results of `fsmerge check`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fsmerge_cli.common.notes import notes_in
from fsmerge_cli.common.shown import cell
from fsmerge_cli.common.wording import worded
from fsmerge_cli.reporting.agreement import counted_word
from fsmerge_cli.reporting.measures import column, correlation, has_accuracies, has_joint, has_numbers, is_measured
from fsmerge_cli.reporting.terminal import line

JOINT = "the task is not given: the prediction is the best label over all tasks"
"""What joint accuracy means; as `summary.JOINT`, which cannot be imported without torch."""


def score_table(evaluation: Mapping[str, Any]) -> Table:
    """Top-1 accuracy of the rows of evaluation.json: by task, mean and joint."""
    from fsmerge_cli.reporting.summary import shown_rows  # imports torch

    tasks = evaluation["tasks"]
    method = "" if evaluation["method"] == "unknown" else f" ({evaluation['method']})"
    classes = has_accuracies(evaluation)
    what = (
        "Top-1 accuracy on test images, %" if classes else "Pearson's correlation with the labels of test images"
    )
    if classes and has_numbers(evaluation):
        what = f"{what}, and Pearson's correlation"
    table = Table(title=line(counted_word(evaluation, f"{what}{method}")), title_justify="left")
    table.add_column("model", no_wrap=True)
    shares: Sequence[str] = ("mean", "joint", "joint (logits)") if classes else ()
    if has_numbers(evaluation) and not has_joint(evaluation):
        shares = shares[:1]
    for name in [*(column(evaluation, task) for task in tasks), *shares]:
        table.add_column(line(name), justify="right")
    for name, row in shown_rows(evaluation).items():
        cells = [_cell(row, task) for task in tasks]
        more = row["mean_top1"], row["joint_top1"].get("softmax"), row["joint_top1"].get("logits")
        label = f"{name} (source)" if name in tasks else _row_name(evaluation, name)
        cells += map(per_cent, more[: len(shares)])
        table.add_row(line(label), *cells, style="bold" if name == "merged" else None)
    return table


def _cell(row: Mapping[str, Any], task: str) -> str:
    if task in row.get("numbers", {}):
        return correlation(row["numbers"][task]["pearson"])
    return per_cent(row["tasks"].get(task, {}).get("top1"))


def result_tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """The accuracies of a run; without labels the agreement with the sources; empty without either."""
    from fsmerge_cli.reporting.summary import agreements, images_in_words

    if any(map(is_measured, evaluation["rows"].values())):
        return [score_table(evaluation)]
    found = agreements(evaluation)
    if found is None:
        return []
    title = f"{found.columns[0][0].upper()}{found.columns[0][1:]}, on {images_in_words(evaluation)}"
    table = Table(title=line(title), title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in found.columns[1:]:
        table.add_column(line(name), justify="right")
    for name, *cells in found.rows:
        table.add_row(line(name), *cells, style="bold" if name == "merged" else None)
    return [table]


def result_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """The result of a run in a sentence, and for labelled images the agreement with the sources."""
    from fsmerge_cli.reporting.summary import agreement, verdict

    found = verdict(evaluation)[:1] if evaluation["rows"] else []
    same, other = agreement(evaluation), agreement(evaluation, "average")
    if found and same is not None and evaluation["rows"]["merged"]["tasks"]:
        beside = f" (plain average: {per_cent(other)} %)" if other is not None else ""
        images = counted_word(evaluation, "images")
        found.append(f"It agrees with its sources on {per_cent(same)} % of the {images}{beside}.")
    return [" ".join(found)] if found else []


def task_tables(evaluation: Mapping[str, Any], name: str = "merged") -> list[Table]:
    """One row of evaluation.json by task: accuracies with their interval, and correlations of tasks of numbers."""
    row = evaluation["rows"][name]
    classes = [_accuracies(evaluation, name)] if row["tasks"] or not row.get("numbers") else []
    return [*classes, *([_correlations(evaluation, name)] if row.get("numbers") else [])]


def _accuracies(evaluation: Mapping[str, Any], name: str) -> Table:
    from fsmerge_cli.reporting.summary import PROTOCOLS

    columns = ("top-1 %", "95 % interval", "top-5 %", "loss", "calibration error %")
    table, row = _by_task(evaluation, name, columns), evaluation["rows"][name]
    for task, found in row["tasks"].items():
        low, high = found["interval"]
        cells = [str(found["count"]), per_cent(found["top1"]), f"{per_cent(low)} - {per_cent(high)}"]
        cells += [per_cent(found["top5"]), f"{found['loss']:.3f}", per_cent(found["calibration_error"])]
        table.add_row(line(task), *cells)
    joint = row["joint_top1"]
    if joint:
        shares = [f"{words} {per_cent(joint[name])}" for name, words in PROTOCOLS.items() if name in joint]
        table.caption = f"Joint accuracy in % ({JOINT}): {', '.join(shares)}"
        table.caption_justify = "left"
    return table


def _correlations(evaluation: Mapping[str, Any], name: str) -> Table:
    table = _by_task(evaluation, name, ("Pearson", "Spearman", "squared error"))
    for task, found in evaluation["rows"][name]["numbers"].items():
        cells = [correlation(found["pearson"]), correlation(found["spearman"]), f"{found['loss']:.3f}"]
        table.add_row(line(task), str(found["count"]), *cells)
    return table


def _by_task(evaluation: Mapping[str, Any], name: str, columns: Sequence[str]) -> Table:
    table = Table(title=line(f"{_row_name(evaluation, name)}, by task"), title_justify="left")
    table.add_column("task", no_wrap=True)
    for title in (counted_word(evaluation, "images"), *columns):
        table.add_column(title, justify="right")
    return table


def _row_name(evaluation: Mapping[str, Any], name: str) -> str:
    """The name of a row; a third-party model is not called merged."""
    return "model" if name == "merged" and evaluation["method"] == "unknown" else name


def summary_line(evaluation: Mapping[str, Any]) -> str:
    """Steps, trainable parameters, images and seconds of one run, and what joint accuracy means."""
    cost = evaluation["cost"]
    seconds = sum(cost["seconds"].values())
    joint = any(row["joint_top1"] for row in evaluation["rows"].values())
    line = f"{cost['steps']} steps, {cost['trained_parameters']:,} trainable parameters, "
    line += f"{cost['images']} images, "
    explained = f" joint: joint accuracy ({JOINT}; softmax per head)." if joint else ""
    return f"{line}{seconds:.1f} s.{explained}"


def sweep_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """One row per job of a sweep."""
    tasks = list(dict.fromkeys(name for job in jobs for name in job.get("tasks", {})))
    numbers = list(dict.fromkeys(name for job in jobs for name in job.get("numbers", {})))
    title = "All runs, top-1 accuracy of the merged model on test images, %"
    title = f"{title}, and Pearson's correlation" if numbers else title
    table = Table(title=title, title_justify="left")
    table.add_column("run", overflow="fold")
    for name in [*tasks, *(f"{name} (Pearson)" for name in numbers), "mean", "joint", "seconds"]:
        table.add_column(line(name), justify="right")
    for job, label in zip(jobs, distinct([job["run"] for job in jobs])):
        if job["exit_code"]:
            table.add_row(
                line(label), *["-"] * (len(tasks) + len(numbers) + 2), line(f"failed ({job['exit_code']})")
            )
        else:
            own = job.get("numbers", {})  # of an earlier version
            cells = [per_cent(job["tasks"].get(task)) for task in tasks]
            cells += [correlation(own.get(name)) for name in numbers]
            cells += [per_cent(job["mean"]), per_cent(job["joint"])]
            table.add_row(line(label), *cells, f"{job['seconds']:.1f}")
    return _explained(table, [job.get("joint") for job in jobs])


def _explained(table: Table, joint: Sequence[float | None]) -> Table:
    """The table with a caption that defines joint accuracy, if it has values of it."""
    if any(value is not None for value in joint):
        table.caption, table.caption_justify = f"joint: joint accuracy ({JOINT}; softmax per head)", "left"
    return table


def distinct(runs: Sequence[str]) -> list[str]:
    """The settings that distinguish the runs: without those that all of them share.

    >>> distinct(["models=a seed=0", "models=a seed=1"])
    ['seed=0', 'seed=1']
    """
    settings = [run.split() for run in runs]
    shared = set.intersection(*map(set, settings)) if len(runs) > 1 else set()
    return [" ".join(part for part in own if part not in shared) or run for own, run in zip(settings, runs)]


def per_cent(value: float | None) -> str:
    """A share in per cent, one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows as CSV with a header of all their columns. Raises OSError."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_cells(path, [names, *([row.get(name) for name in names] for row in rows)])


def write_cells(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write cells as CSV. Text is quoted, and neutral where a spreadsheet would take it for a formula."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows([cell(value) for value in row] for row in rows)


COLUMNS = ("width", "depth", "heads", "patch", "classes")
LAST_COLUMNS = ("norm.", "dtype", "params", "MB")
WIDEST = 100_000
"""More columns than any table has."""


def source_tables(inspection: Mapping[str, Any], console: Console) -> list[Table | Text]:
    """The sources of an inspection, one row each; mean and std are averaged over the channels.

    Where the names of the architectures do not fit beside the other columns, they stand below the table.
    """
    whole = _source_table(inspection, True)
    if Measurement.get(console, console.options.update(max_width=WIDEST), whole).maximum <= console.width:
        return [whole]
    by_name: dict[str, list[str]] = {}
    for row in inspection["rows"]:
        by_name.setdefault(row["architecture"], []).append(row["name"])
    names = [f"{name}: {', '.join(own)}" if len(by_name) > 1 else name for name, own in by_name.items()]
    return [_source_table(inspection, False), *(line(f"architecture {name}") for name in names)]


def _source_table(inspection: Mapping[str, Any], with_architecture: bool) -> Table:
    pixels = any(max(map(abs, row["mean"]), default=0.0) > 0 for row in inspection["rows"])
    title = "Sources (norm.: mean/std of the pixels)" if pixels else "Sources"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=0)
    for name in ("source", *(["architecture"] if with_architecture else []), *COLUMNS, *LAST_COLUMNS):
        right = name in (*COLUMNS, "params", "MB")
        table.add_column(name, overflow="fold", justify="right" if right else "left")
    for row in inspection["rows"]:
        patch = "x".join(map(str, row["patch"])) if row["patch"] else None
        sizes = [patch if name == "patch" else row[name] for name in COLUMNS]
        size = "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f}"
        mean, std = (sum(values) / len(values) for values in (row["mean"], row["std"]))
        norm = "none" if (mean, std) == (0.0, 1.0) else f"{mean:.2f}/{std:.2f}"
        names = [row["name"], *([row["architecture"]] if with_architecture else [])]
        cells = [*names, *("-" if value is None else str(value) for value in sizes)]
        table.add_row(*map(line, [*cells, norm, row["dtype"], f"{row['parameters'] / 1e6:,.2f}M", size]))
    return table


def check_lines(inspection: Mapping[str, Any]) -> list[str]:
    """The lines below the table of sources: their origins, the methods that apply, and the estimated cost."""
    lines = [f"{row['name']}: {row['state']}" for row in inspection["rows"]]
    if inspection["reasons"]:
        return lines
    if inspection["verdict"]:
        cosines = ", ".join(f"{cosine:.2f}" for cosine in inspection["similarity"])
        lines.append(f"similarity to source 1: {cosines}; {inspection['verdict']}")
    applicable = [method["name"] for method in inspection["methods"] if method["why_not"] is None]
    lines.append(f"methods that apply: {', '.join(applicable)}")
    against: dict[str, list[str]] = {}
    for method in inspection["methods"]:
        if method["why_not"]:
            against.setdefault(method["why_not"], []).append(method["name"])
    for why, names in against.items():
        lines.append(f"  {', '.join(names)} {'does' if len(names) == 1 else 'do'} not apply: {why}")
    lines.append(f"recommended: {inspection['recommended']} ({inspection['why']})")
    estimates = []
    if inspection["memory"] is not None:
        estimates.append(f"about {inspection['memory'] / 1e9:.1f} GB of peak memory")
    if inspection["seconds"] is not None:
        estimates.append(f"about {duration(inspection['seconds'])} of computation")
    if estimates:
        lines.append(f"estimate for method={inspection['method']}: {', '.join(estimates)}")
    if inspection["top1"]:
        measured = ", ".join(f"{name} {per_cent(share)} %" for name, share in inspection["top1"].items())
        images = worded("test images", inspection["counted"])
        lines.append(f"top-1 accuracy of the sources on their {images}: {measured}")
    return [*lines, *(f"note: {note}" for note in notes_in(inspection["notes"]))]


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours.

    >>> duration(0.2), duration(75), duration(600), duration(7200)
    ('1 s', '75 s', '10 min', '2.0 h')
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
