"""The table of `fsmerge compare` at several widths."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fsmerge_cli.reporting.comparison_table import compare_table
from fsmerge_cli.reporting.terminal import NO_LIMIT, SafeConsole


def rows(tasks: int = 3) -> list[dict[str, Any]]:
    own = {f"top1.task{i}": 0.9 + i / 100 for i in range(tasks)}
    rest = {"joint": 0.8, "joint_calibrated": 0.85, "seconds": 1234.56, "steps": 100, "loss.task0": 0.1}
    gap = {"difference": -0.021, "difference_low": -0.031, "difference_high": -0.011}
    first = {"run": "method=fs_merge seed=0", **own, "mean": 0.91, **rest, **dict.fromkeys(gap)}
    return [first, {**first, "run": "method=kd seed=0", **gap}]


def shown(width: int, found: list[dict[str, Any]], sort: str = "mean") -> list[str]:
    console = SafeConsole(file=io.StringIO(), width=width)
    console.print(compare_table(found, sort, width))
    assert isinstance(console.file, io.StringIO)
    return [row.rstrip() for row in console.file.getvalue().splitlines()]


def titles(lines: list[str]) -> list[str]:
    heads = [row.strip("┃").split("┃") for row in lines if row.startswith("┃")]
    return [" ".join(part.strip() for part in column).strip() for column in zip(*heads)]


TASKS = ["task0", "task1", "task2"]


@pytest.mark.parametrize(
    ("width", "columns", "left_out"),
    [
        (NO_LIMIT, ["run", *TASKS, "mean", "joint", "joint calibrated", "seconds", "difference"], ""),
        (120, ["run", *TASKS, "mean", "joint", "joint calibrated", "seconds", "difference"], ""),
        (100, ["run", *TASKS, "mean", "joint", "seconds", "difference"], "joint calibrated"),
        (80, ["run", *TASKS, "mean", "difference"], "joint, joint calibrated, seconds"),
        (75, ["run", "task0", "task1", "mean", "difference"], "task2, joint, joint calibrated, seconds"),
        (60, ["run", "mean", "difference"], "task0, task1, task2, joint, joint calibrated, seconds"),
    ],
)
def test_columns_are_left_out_whole_and_named(width: int, columns: list[str], left_out: str) -> None:
    lines = shown(width, rows())
    assert titles(lines) == columns
    assert max(map(len, lines)) <= width
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in lines if row.startswith("│")]
    assert [own[0] for own in cells] == ["method=fs_merge seed=0", "method=kd seed=0"]
    assert cells[1][-1] == "-2.1 (-3.1 to -1.1)"
    text = " ".join(lines)
    note = f"no room at {width} columns for: {left_out}. --csv FILE and --json have all."
    assert (note in text) if left_out else ("no room" not in text)


def test_the_column_of_sort_is_always_shown() -> None:
    assert titles(shown(60, rows(), "seconds")) == ["run", "mean", "seconds"]
    assert titles(shown(70, rows(), "loss.task0")) == ["run", "mean", "loss.task0", "difference"]


def test_a_long_name_of_a_run_wraps_on_a_terminal_and_not_in_a_pipe() -> None:
    found = [{**row, "run": f"{row['run']} data.images_per_task=100 method.steps=2000"} for row in rows()]
    assert "data.images_per_task=100" not in "\n".join(r for r in shown(80, found) if "fs_merge" in r)
    assert any(found[0]["run"] in row for row in shown(NO_LIMIT, found))
