"""Tables and plot of the quality benchmark, from its rows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.benchmark.goals import Block, goals, missing_rows, paragraph, scrambling_effect
from scripts.benchmark.intervals import METHODS, Cell, Row, difference, relative, relative_interval, text_of
from scripts.benchmark.picture import picture, summary
from scripts.benchmark.sources import FOR_TUNING

WITHOUT_TASK_IMAGES = ("auxiliary", "generated")
"""Auxiliary data that replaces the images of the tasks; first in every list."""


def write_results(rows: Sequence[Row], folder: Path, against: str = "kd", blocks: Sequence[Block] = ()) -> None:
    """Write quality.md and its pictures; differences are to the method `against`. blocks: the full matrix."""
    cells: dict[Cell, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["group"], row["images"]][row["method"]].append(row)
    for cell, methods in cells.items():
        for method, found in methods.items():
            if len({tuple(row["overrides"]) for row in found}) > 1:
                raise SystemExit(f"{cell}: the rows of {method} were made with different options")
        if len({tuple(row["sources_sha256"].items()) for found in methods.values() for row in found}) > 1:
            raise SystemExit(f"{cell}: the rows were made from different sources")
    order = sorted(cells, key=_order)
    tuning = any(group in FOR_TUNING for group, _ in cells)
    head = HEAD.format(against=against, tuning=CHOSEN if tuning else HELD_OUT)
    parts = [TITLE, paragraph(head), _versions(rows), PICTURE, *([] if tuning else [goals(cells, order)])]
    parts += [*(table(cell, cells[cell], against) for cell in order), *scrambling_effect(cells, order)]
    parts += [] if tuning else missing_rows(cells, blocks)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.md").write_text("\n".join(parts))
    picture(cells, [cell for cell in order if any(r["steps"] for m in cells[cell].values() for r in m)], folder)
    summary(cells, folder)


TITLE = "# Accuracy of merged models\n"
HEAD = """Per cent of the sources' accuracy: top-1, mean over tasks and seeds. The test images are in other fonts
than the training images. The 95 % interval is over test images, and over seeds where there are several; the
sources' accuracy is treated as exact. `joint`: top-1 accuracy among the labels of all tasks (the task is not
given), with one softmax per head, plain and calibrated; the reference is the ensemble of all sources. `to
{against}`: paired difference in points of accuracy from the row {against} of the same seeds, with its interval.
fs_merge and kd start from `matched` and use the same training inputs, losses, targets, steps (2,000) and
projectors; the other methods have their own. Without images of the tasks, the heads of the merged model are
calibrated to the sources' predictions on its training images; this leaves the ensemble unchanged. Seconds are
those of the fit on the device listed in the row, which other runs shared. {tuning} Written by `python -m
scripts.benchmark --table-only --against={against} --results=FOLDER` from the quality.jsonl of this folder."""
HELD_OUT = """The options were chosen on the alphabets digits, capitals, greek and cyrillic, which are not
reported here."""
PICTURE = "![Per cent of the sources' accuracy against seconds of the fit](quality.svg)\n"
CHOSEN = "The options were chosen on these alphabets."


def _order(cell: Cell) -> tuple[str, int]:
    group, images = cell
    without = WITHOUT_TASK_IMAGES
    return group, without.index(images) - len(without) if images in without else int(images)


def _place(method: str) -> tuple[int, str]:
    return METHODS.index(method) if method in METHODS else len(METHODS), method


def _versions(rows: Sequence[Row]) -> str:
    """The library versions that the rows were made with."""
    found = {", ".join(f"{name} {version}" for name, version in row["versions"].items()) for row in rows}
    return f"Made with {'; '.join(sorted(found))}.\n"


def table(cell: Cell, methods: Mapping[str, Sequence[Row]], against: str, inputs: str = "images") -> str:
    """The table of one group and number of images. inputs: the word for them."""
    first = next(iter(methods.values()))[0]
    lines = [
        f"## {cell[0]}, {_data(cell[1], inputs)}\n",
        f"Sources {100 * statistics.mean(first['sources'].values()):.1f} %; ensemble joint "
        f"{_ensemble(methods, 'softmax')}, calibrated {_ensemble(methods, 'softmax_calibrated')} %.\n",
        f"| method | seeds | % of the sources | to {against} | joint | calibrated | steps | seconds | on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, found in sorted(methods.items(), key=lambda own: _place(own[0])):
        low, high = relative_interval(found)
        gap = "-" if method == against else text_of(difference(found, methods.get(against, ())))
        lines.append(
            f"| {method} | {len(found)} | {relative(found):.1f} [{low:.1f}, {high:.1f}] | {gap} | "
            f"{_joint(found, 'softmax')} | {_joint(found, 'softmax_calibrated')} | {found[0]['steps']} | "
            f"{statistics.median(row['seconds'] for row in found):.0f} | {_devices(found)} |"
        )
    options = {method: " ".join(found[0]["overrides"]) for method, found in methods.items()}
    if any(options.values()):
        lines += ["", *(f"- {method}: `{own}`" for method, own in options.items() if own)]
    return "\n".join(lines) + "\n"


def _data(images: str, inputs: str) -> str:
    """The training data of a cell, in words."""
    return f"{images} {inputs} per task" if images.isdigit() else f"no {inputs} of the tasks, {images} data"


def _devices(found: Sequence[Row]) -> str:
    return ", ".join(sorted({row["device"] for row in found}))


def _joint(found: Sequence[Row], protocol: str) -> str:
    values = [row["joint"][protocol] for row in found if protocol in row["joint"]]
    return f"{100 * statistics.mean(values):.1f}" if values else "-"


def _ensemble(methods: Mapping[str, Sequence[Row]], protocol: str) -> str:
    """Joint accuracy of all sources, mean over the seeds: calibration depends on the sampled images."""
    seeds = {row["seed"]: row["ensemble_joint"].get(protocol) for found in methods.values() for row in found}
    values = [value for value in seeds.values() if value is not None]
    return f"{100 * statistics.mean(values):.1f}" if values else "-"
