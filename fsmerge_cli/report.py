"""What a person sees in the terminal: progress, the score table, the sweep table."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fsmerge_cli.errors import OutputError
from fsmerge_cli.progress import Event


class Reporter:
    """Shows events: live bars on a terminal, one line per finished phase elsewhere. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._live = console.is_terminal

    def __enter__(self) -> Reporter:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """One event of the core."""
        note = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
        if self._live:
            task = self._tasks.get(event.phase)
            if task is None:
                task = self._tasks[event.phase] = self._bars.add_task(event.phase, total=event.total, note="")
            self._bars.update(task, completed=event.done, note=note)
        elif event.done == event.total:
            self._console.print(Text(f"{event.phase}: {event.done}/{event.total} {note}".rstrip()))


def score_table(evaluation: Mapping[str, Any]) -> Table:
    """The rows of evaluation.json: sources, ensemble, average, merged; per task, mean and joint."""
    tasks = evaluation["tasks"]
    method = evaluation["method"]
    table = Table(title=f"Right answers on test images, % ({method})", title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in [*tasks, "mean", "joint", "joint (logits)"]:
        table.add_column(Text(name), justify="right")
    for name, row in evaluation["rows"].items():
        cells = [row["tasks"].get(task, {}).get("top1") for task in tasks]
        cells += [row["mean_top1"], row["joint_top1"].get("softmax"), row["joint_top1"].get("logits")]
        label = f"{name} (source)" if name in tasks else name
        table.add_row(Text(label), *map(per_cent, cells), style="bold" if name == "merged" else None)
    return table


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


HIDDEN = ("folder", "relative", "trained_parameters", "peak_memory_gb", "difference_low", "difference_high")
"""Columns of a comparison that only CSV and JSON have; there is no room for them in a terminal."""


def compare_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per run, as `fsmerge compare` sorted them."""
    table = Table(title="Right answers of the merged models on test images, %", title_justify="left")
    columns = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in HIDDEN]
    for name in columns:
        title = Text(name.removeprefix("top1.").replace("_", " "))
        wide = {"justify": "left", "min_width": 16} if name == "run" else {"justify": "right"}
        table.add_column(title, overflow="fold", **wide)
    for row in rows:
        table.add_row(*(Text(_compared(row, name)) for name in columns))
    return table


def _compared(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if name == "run":
        return str(value)
    if name == "difference":
        low, high = row["difference_low"], row["difference_high"]
        return "" if value is None else f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    if name == "seconds":
        return "-" if value is None else f"{value:.1f}"
    return per_cent(value)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the names of all their columns. Raises OutputError."""
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}. Choose another --csv FILE.") from None
