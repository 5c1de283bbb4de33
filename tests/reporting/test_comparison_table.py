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


def of_numbers(runs: int, **more: float) -> list[dict[str, Any]]:
    own = {"pearson.likeness": 0.123456789, "pearson.value": -0.987654321, "mean": None, "relative": 0.5}
    empty = dict.fromkeys(("difference", "difference_low", "difference_high", "joint", "joint_calibrated"))
    return [
        {"run": f"method=regmean seed={seed}", **own, **more, **empty, "seconds": 12.3} for seed in range(runs)
    ]


@pytest.mark.parametrize("width", [60, 80, 120, NO_LIMIT])
def test_correlations_have_three_decimals_and_fit(width: int) -> None:
    lines = shown(width, of_numbers(2))
    assert titles(lines) == ["run", "likeness (Pearson)", "value (Pearson)", "seconds"]
    assert max(map(len, lines)) <= width
    assert lines[0] == "Pearson's correlation with the labels of test texts"
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in lines if row.startswith("│")]
    assert cells[0][:3] == ["method=regmean seed=0", "0.123", "-0.988"]
    both = shown(width, of_numbers(2, **{"pearson.likeness_std": 0.01234, "pearson.value_std": 0.1}))
    assert "0.123 ± 0.012" in "\n".join(both)


@pytest.mark.parametrize(
    ("word", "title"),
    [
        ("image", "Top-1 accuracy on test images, %"),
        ("word", "Top-1 accuracy on test words, %"),
        (None, "Top-1 accuracy, %"),
    ],
)
def test_the_title_has_the_word_for_what_is_counted(word: Any, title: str) -> None:
    assert str(compare_table(rows(), word=word).title) == title
    mixed = [{**row, "pearson.likeness": 0.5} for row in rows()]
    assert str(compare_table(mixed, word=word).title) == f"{title}, and Pearson's correlation"


def test_a_short_name_of_a_run_leaves_its_room_to_the_difference() -> None:
    gap = {"difference": 0.0, "difference_low": -0.4358, "difference_high": 0.4358}
    first = {"top1.topic": 0.222, "pearson.likeness": -0.19, "mean": 0.222, "seconds": 0.3}
    found = [{"run": "method=regmean", **first, **dict.fromkeys(gap)}, {"run": "method=average", **first, **gap}]
    assert any("+0.0 (-43.6 to +43.6)" in line for line in shown(80, found))


def test_the_column_of_sort_is_always_shown() -> None:
    assert titles(shown(60, rows(), "seconds")) == ["run", "mean", "seconds"]
    assert titles(shown(70, rows(), "loss.task0")) == ["run", "mean", "loss.task0", "difference"]


def test_a_long_name_of_a_run_wraps_on_a_terminal_and_not_in_a_pipe() -> None:
    found = [{**row, "run": f"{row['run']} data.images_per_task=100 method.steps=2000"} for row in rows()]
    assert "data.images_per_task=100" not in "\n".join(r for r in shown(80, found) if "fs_merge" in r)
    assert any(found[0]["run"] in row for row in shown(NO_LIMIT, found))
