"""Tables and picture of the quality benchmark, from its rows."""

from __future__ import annotations

import base64
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Row = Mapping[str, Any]
Cell = tuple[str, str]
"""Group, images per task."""

LEVEL = 0.95
WITHOUT = ("unrelated", "generated")
"""What is asked about where there is no image of a task; first in every list."""


def write_results(rows: Sequence[Row], folder: Path) -> None:
    """quality.md and quality.svg."""
    cells: dict[Cell, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["group"], row["images"]][row["method"]].append(row)
    for cell, methods in cells.items():
        for method, found in methods.items():
            if len({tuple(row["overrides"]) for row in found}) > 1:
                raise SystemExit(f"{cell}: the rows of {method} were not made with the same options")
    parts = [HEAD]
    for cell in sorted(cells, key=_order):
        parts.append(table(cell, cells[cell]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.md").write_text("\n".join(parts))
    picture(cells, folder / "quality.svg")


HEAD = """# What a merge keeps

Per cent of the sources' accuracy (top-1, mean over tasks and seeds; test images in other fonts than training
images; 95 % interval over test images, and over seeds where there are several; the sources' accuracy is taken
as it is). `joint`: right answers among the labels of all tasks, softmax per head, plain and calibrated, beside
the ensemble of all sources. `to kd`: difference in points of accuracy to the row kd of the same seeds, with its
interval, paired image by image. fs_merge and kd have the same questions, losses, targets, steps and readouts;
the other methods have their own. Seconds are those of the fit on one thread of 2 cores that other processes
shared, and say little. The options were chosen on the alphabets digits, capitals, greek and cyrillic, none of
which is reported here. Written by `python scripts/quality.py --table-only` from quality.jsonl, which also has
the options that are not the default's.
"""


def _order(cell: Cell) -> tuple[str, int]:
    group, images = cell
    return group, WITHOUT.index(images) - len(WITHOUT) if images in WITHOUT else int(images)


def table(cell: Cell, methods: Mapping[str, Sequence[Row]]) -> str:
    """One group and number of images."""
    first = next(iter(methods.values()))[0]
    bound = first["ensemble_joint"]
    lines = [
        f"## {cell[0]}, {cell[1]} images per task\n",
        f"Sources {100 * statistics.mean(first['sources'].values()):.1f} %; ensemble joint "
        f"{_percent(bound, 'softmax')}, calibrated {_percent(bound, 'softmax_calibrated')} %.\n",
        "| method | seeds | % of the sources | to kd | joint | calibrated | steps | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, found in methods.items():
        low, high = relative_interval(found)
        gap = paired(found, methods.get("kd", ()))
        lines.append(
            f"| {method} | {len(found)} | {relative(found):.1f} [{low:.1f}, {high:.1f}] | {gap} | "
            f"{_joint(found, 'softmax')} | {_joint(found, 'softmax_calibrated')} | {found[0]['steps']} | "
            f"{statistics.median(r['seconds'] for r in found):.0f} |"
        )
    return "\n".join(lines) + "\n"


def answers(row: Row) -> dict[str, npt.NDArray[np.float64]]:
    """Which test images of every task were answered rightly, 0 or 1."""
    return {
        task: np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8))[: row["counts"][task]].astype(float)
        for task, bits in row["right"].items()
    }


def paired(found: Sequence[Row], others: Sequence[Row]) -> str:
    """Mean difference of accuracy in points with its interval: over the seeds that both have, image by image."""
    by_seed = {row["seed"]: row for row in others}
    pairs = [(row, by_seed[row["seed"]]) for row in found if row["seed"] in by_seed]
    if not pairs or found[0]["method"] == others[0]["method"]:
        return "-"
    gaps = [{t: a[t] - b[t] for t in a} for a, b in ((answers(x), answers(y)) for x, y in pairs)]
    value, half = _spread(gaps)
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


def _joint(found: Sequence[Row], protocol: str) -> str:
    values = [row["joint"][protocol] for row in found if protocol in row["joint"]]
    return f"{100 * statistics.mean(values):.1f}" if values else "-"


def _percent(scores: Mapping[str, float], protocol: str) -> str:
    return f"{100 * scores[protocol]:.1f}" if protocol in scores else "-"


def picture(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], file: Path) -> None:
    """Per cent of the sources against seconds, one panel per cell that has trained methods."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [cell for cell in sorted(cells, key=_order) if "kd" in cells[cell]]
    if not shown:
        return
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.2 * lines), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, cell in zip(axes.flat, shown):
        for method, found in cells[cell].items():
            low, high = relative_interval(found)
            seconds = statistics.median(row["seconds"] for row in found)
            value = relative(found)
            axis.errorbar(seconds, value, [[max(0, value - low)], [max(0, high - value)]], fmt="o", label=method)
        axis.set_xscale("log")
        axis.set_title(f"{cell[0]}, {cell[1]}", fontsize=9)
        axis.set_xlabel("seconds of the fit")
        axis.set_ylabel("% of the sources")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
