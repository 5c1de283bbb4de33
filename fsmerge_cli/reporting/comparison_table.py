"""The table of `fsmerge compare`. Columns that a terminal has no room for are left out whole, and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from fsmerge_cli.common.wording import Word, worded
from fsmerge_cli.reporting.measures import correlation
from fsmerge_cli.reporting.tables import JOINT, per_cent
from fsmerge_cli.reporting.terminal import NO_LIMIT, line

SHOWN = ("runs", "mean", "joint", "joint_calibrated", "seconds", "difference")
"""Columns of a comparison in addition to the tasks' accuracies; CSV and JSON have all others as well."""

LEAST_IMPORTANT = ("joint_calibrated", "seconds", "joint")
"""What is left out first; then the tasks from the last one, then the difference. Never run, mean and --sort."""

UNLABELLED = ("agreement", "agreement_average")
"""Columns that are shown as well where some run has no accuracy."""

SHARES = (*UNLABELLED, "top1", "top5", "mean", "relative", "joint", "joint_calibrated", "joint_logits")
"""Metrics that are shown in per cent, without their suffix `.TASK`."""

CORRELATIONS = ("pearson.", "spearman.")
"""Beginnings of the metrics that are shown with three decimals."""

RUN = 28
"""Columns that the name of a run keeps; a longer one wraps before other columns are left out."""

BETWEEN = 3
"""Columns between two cells."""


def compare_table(
    rows: Sequence[Mapping[str, Any]], sort: str = "mean", width: int = NO_LIMIT, word: Word | None = "image"
) -> Table:
    """One row per run, as `fsmerge compare` sorted them, in at most `width` columns where possible.

    word: for what the test counts count (None: not the same in all runs).
    """
    names = dict.fromkeys(name for row in rows for name in row)
    own = [n for n in names if n.startswith(("top1.", "pearson."))]
    tasks = [n for n in own if not (n.endswith("_std") and n[:-4] in names)]
    columns = ["run", *(n for n in names if n == "runs"), *tasks]
    more = (*SHOWN, sort, *(UNLABELLED if any(row.get("mean") is None for row in rows) else ()))
    columns += [n for n in names if n in more and n not in columns]
    columns = [n for n in columns if not _is_empty(rows, n) or (n == sort and n != "mean")]
    cells = {name: [_cell(row, name) for row in rows] for name in columns}
    kept = fitting(cells, [*LEAST_IMPORTANT, *reversed(tasks), "difference"], {"run", "mean", sort}, width)
    narrow = sum(max(map(cell_len, [_title(n), *own])) + BETWEEN for n, own in cells.items() if n in kept) >= width
    table = Table(title=_heading(tasks, word), title_justify="left")
    for name in kept:
        if name == "run":
            least = min(16, width // 3, max(map(cell_len, cells[name])))
            table.add_column(name, overflow="fold", min_width=least, no_wrap=width >= NO_LIMIT)
        else:
            # rich narrows the widest columns only, and not below min_width: the table would be cut off
            most = _width(name, cells[name]) if narrow else None
            table.add_column(line(_title(name)), justify="right", overflow="fold", max_width=most)
    for i in range(len(rows)):
        table.add_row(*(line(cells[name][i]) for name in kept))
    left_out = [_title(name) for name in columns if name not in kept]
    table.caption = "\n".join(_explanations(rows, left_out, width)) or None
    table.caption_justify = "left"
    return table


def _is_empty(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether no run has a value in a column that is not one of a task."""
    return name in (*SHOWN, *UNLABELLED) and all(row.get(name) is None for row in rows)


def _heading(tasks: Sequence[str], word: Word | None) -> str:
    kinds = {name.partition(".")[0] for name in tasks}
    if kinds == {"pearson"}:
        return "Pearson's correlation with the labels of test texts"
    on = worded(" on test images", word) if word else ""
    return f"Top-1 accuracy{on}, %" + (", and Pearson's correlation" if "pearson" in kinds else "")


def fitting(
    cells: Mapping[str, Sequence[str]], least_important: Sequence[str], always: set[str], width: int
) -> list[str]:
    """The columns that fit, in their order; `least_important` are left out first to last."""
    kept = list(cells)
    for name in least_important:
        if sum(_width(title, cells[title]) + BETWEEN for title in kept) + 1 <= width:
            break
        if name in kept and name not in always:
            kept.remove(name)
    return kept


def _width(name: str, cells: Sequence[str]) -> int:
    """Columns that a column needs; its title may wrap at words, and the name of a run anywhere."""
    widest = max(map(cell_len, cells), default=0)
    return min(widest, RUN) if name == "run" else max(widest, *map(cell_len, _title(name).split()))


def _title(name: str) -> str:
    if name.startswith("pearson."):
        return f"{name.removeprefix('pearson.')} (Pearson)"
    return name.removeprefix("top1.").replace("_", " ")


def _explanations(rows: Sequence[Mapping[str, Any]], left_out: Sequence[str], width: int) -> list[str]:
    lines = []
    if any("runs" in row for row in rows):
        lines.append("mean and standard deviation of the runs of each group")
    if "joint" not in left_out and any(row.get("joint") is not None for row in rows):
        lines.append(f"joint: joint accuracy ({JOINT}; softmax per head)")
    if left_out:
        lines.append(f"no room at {width} columns for: {', '.join(left_out)}. --csv FILE and --json have all.")
    return lines


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    share = name.partition(".")[0] in SHARES
    if name in ("run", "runs"):
        return str(value)
    if name == "difference":
        return _difference(row)
    if f"{name}_std" in row and value is not None:
        error = row[f"{name}_std"]
        if name.startswith(CORRELATIONS):
            spread = "" if error is None else f" ± {correlation(error)}"
        else:
            spread = "" if error is None else f" ± {100 * error:.1f}" if share else f" ± {error:,.2g}"
        return (per_cent(value) if share else _number(name, value)) + spread
    return per_cent(value) if share else _number(name, value)


def _number(name: str, value: float | None) -> str:
    if name.startswith(CORRELATIONS):
        return correlation(value)
    return "-" if value is None else f"{value:.1f}" if name == "seconds" else f"{value:,.5g}"


def _difference(row: Mapping[str, Any]) -> str:
    value = row["difference"]
    if value is None:
        return ""
    if "difference_std" in row:
        error = row["difference_std"]
        return f"{100 * value:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
    low, high = row["difference_low"], row["difference_high"]
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
