"""Tables in a terminal of 80 columns."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fsmerge_cli.common.notes import notes_in
from fsmerge_cli.reporting import tables
from fsmerge_cli.reporting.terminal import SafeConsole

LONG = "vit_base_patch16_clip_quickgelu_224"


def row(name: str, architecture: str) -> dict[str, Any]:
    sizes = {"width": 768, "depth": 12, "heads": 12, "patch": [16, 16], "classes": 1000}
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    weights = {"dtype": "float32", "parameters": 86_567_656, "bytes": 346_270_624}
    return {"name": name, "architecture": architecture, **sizes, **pixels, **weights}


def printed(rows: list[dict[str, Any]], width: int) -> list[str]:
    console = SafeConsole(file=io.StringIO(), width=width)
    for part in tables.source_tables({"rows": rows}, console):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize(
    ("architectures", "below"),
    [
        ([LONG, LONG], [f"architecture {LONG}"]),
        (
            [LONG, "vit_base_patch16_224"],
            [f"architecture {LONG}: cars", "architecture vit_base_patch16_224: pets"],
        ),
    ],
)
def test_architectures_that_do_not_fit_stand_whole_below_the_table(
    architectures: list[str], below: list[str]
) -> None:
    rows = [row(name, architecture) for name, architecture in zip(("cars", "pets"), architectures)]
    lines = printed(rows, 80)
    assert lines[-2:][-len(below) :] == below
    assert "cars 768 12 12 16x16 1000 0.50/0.50 float32 86.57M 346.3" in lines
    assert f"cars {LONG} 768 12 12 16x16 1000 0.50/0.50 float32 86.57M 346.3" in printed(rows, 120)
    assert "cars mlp 768 12 12 16x16 1000 0.50/0.50 float32 86.57M 346.3" in printed([row("cars", "mlp")], 90)


def test_notes_that_differ_only_in_a_name_are_one_line() -> None:
    notes = ["'a': x: y", "first", "'b': x: y", "warning: 'a': x", "task 'a': n", "'c': z", "task 'b': n", "first"]
    assert notes_in(notes) == ["'a', 'b': x: y", "first", "tasks 'a', 'b': n", "'c': z"]


def test_the_table_of_a_sweep_shows_correlations_beside_accuracies() -> None:
    job = {"run": "seed=0", "exit_code": 0, "tasks": {"topic": 0.5}, "mean": 0.5, "joint": None, "seconds": 1.0}
    failed = {"run": "seed=2", "exit_code": 2}
    jobs = [job, {**job, "run": "seed=1", "numbers": {"likeness": -0.25}}, failed]
    table = tables.sweep_table(jobs)
    assert (
        table.title == "All runs, top-1 accuracy of the merged model on test images, %, and Pearson's correlation"
    )
    assert [str(column.header) for column in table.columns] == [
        *("run", "topic", "likeness (Pearson)", "mean", "joint", "seconds")
    ]
    cells = [[*map(str, own)] for own in zip(*(column.cells for column in table.columns))]
    assert cells == [
        ["seed=0", "50.0", "-", "50.0", "-", "1.0"],
        ["seed=1", "50.0", "-0.250", "50.0", "-", "1.0"],
        ["seed=2", "-", "-", "-", "-", "failed (2)"],
    ]
    assert "Pearson" not in str(tables.sweep_table([job]).title)
