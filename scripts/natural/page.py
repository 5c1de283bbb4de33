"""docs/results/natural.md, from the rows of `scripts.natural`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.benchmark.goals import paragraph
from scripts.benchmark.intervals import Cell, Row, difference, relative, relative_interval, text_of
from scripts.benchmark.sources import SOURCES
from scripts.benchmark.table import table

BARS = {"16": 95.0, "50": 97.5, "100": 98.0, "500": 99.0, "auxiliary": 95.0}
"""Per cent of the sources' accuracy, by images per task."""

OURS = ("fs_closed_form", "fs_closed_form_trained", "fs_merge")

TITLE = "# Merging networks trained on photographs\n"
HEAD = """Vision transformers (width 128, 6 blocks, patches of 4 pixels) trained from different random
initialisations on public data sets, as 32 x 32 colour images; those of `four_of_cifar10` are fine-tuned from one
of them, `cifar10`, in 500 or 700 steps (`models.base`). Per cent of the sources' accuracy: top-1 on the
test sets, mean over tasks and seeds. The 95 % interval is over test images, and over seeds where there are
several. `joint`: top-1 accuracy among the labels of all tasks (the task is not given), plain and calibrated.
`to kd`: paired difference in points of accuracy from the row kd of the same seeds. `auxiliary`: no image of the
tasks, but 5,000 images of another data set. `kd_fast` and
`fs_merge_fast`: method.budget=fast, 500 and 125 steps. The seconds were measured
on one thread of a machine of two cores that did other work at the same time. Written by
`python -m scripts.natural --root DATA`; `--table-only`
writes it again from natural.jsonl."""
TUNING = """The options of the methods were chosen on these groups, so that their rows are no result."""


def write_page(rows: Sequence[Row], path: Path, tuning: Sequence[str]) -> None:
    """Write the page. tuning: groups whose rows stand apart."""
    cells: dict[Cell, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["group"], row["images"]][row["method"]].append(row)
    order = sorted(cells, key=lambda cell: (cell[0], list(BARS).index(cell[1]) if cell[1] in BARS else 9))
    reported = [cell for cell in order if cell[0] not in tuning]
    parts = [TITLE, paragraph(HEAD), sources_table(), bars(cells, reported)]
    parts += [table(cell, cells[cell], "kd") for cell in reported]
    if others := [cell for cell in order if cell[0] in tuning]:
        parts += ["# The groups for tuning\n", paragraph(TUNING)]
        parts += [table(cell, cells[cell], "kd") for cell in others]
    path.write_text("\n".join(parts))


def sources_table() -> str:
    """The accuracy of every stored source and the cost of its training."""
    lines = [
        "## The sources\n",
        "| task | top-1 % | test images | steps of 64 images | minutes on one CPU thread, beside other work |",
    ]
    lines.append("|---|---|---|---|---|")
    for path in sorted(SOURCES.glob("*_128/training.json")):
        own = json.loads(path.read_text())
        lines.append(
            f"| {path.parent.name.removesuffix('_128')} | {100 * own['top1']:.1f} | {own['test_images']} | "
            f"{own['steps']} | {'-' if own['seconds'] is None else round(own['seconds'] / 60)} |"
        )
    return "\n".join(lines) + "\n"


def bars(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], order: Sequence[Cell]) -> str:
    """Every cell with a bar: what each of our methods keeps, and fs_merge's difference from kd."""
    lines = ["## The bars\n", f"| group | images | bar | {' | '.join(OURS)} | fs_merge - kd | joint - ensemble |"]
    lines.append("|" + "---|" * (len(OURS) + 5))
    for cell in order:
        found, bar = cells[cell], BARS.get(cell[1])
        if bar is None or not any(name in found for name in (*OURS, "kd")):
            continue
        kept = [_kept(found[name], bar) if name in found else "-" for name in OURS]
        gap = text_of(difference(found.get("fs_merge", ()), found.get("kd", ())))
        joint = ", ".join(f"{_joint_gap(found[name]):+.1f}" if name in found else "-" for name in OURS)
        lines.append(f"| {cell[0]} | {cell[1]} | {bar:g} | {' | '.join(kept)} | {gap} | {joint} |")
    return "\n".join(lines) + "\n"


def _kept(rows: Sequence[Row], bar: float) -> str:
    low, high = relative_interval(rows)
    return f"{relative(rows):.1f} [{low:.1f}, {high:.1f}] {'met' if relative(rows) >= bar else 'missed'}"


def _joint_gap(rows: Sequence[Row]) -> float:
    """Joint accuracy by calibrated softmax minus that of all sources, in points, mean over the seeds."""
    gaps = [row["joint"]["softmax_calibrated"] - row["ensemble_joint"]["softmax_calibrated"] for row in rows]
    return 100 * sum(gaps) / len(gaps)
