"""Finished runs side by side."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from fsmerge_cli.cli import main
from fsmerge_cli.compare import RunEntry, difference, labels, ordered

PAIR = ["merge", "+models=digits_mlp_pair", "hardware=cpu"]


def entry(folder: str, right: dict[str, list[int]], **options: object) -> RunEntry:
    evaluation = {"config": {"method": options, "data": {"name": "x"}}, "tasks": ["a", "b"]}
    answers = {f"task.{task}": torch.tensor(values, dtype=torch.uint8) for task, values in right.items()}
    return RunEntry(Path(folder), evaluation, {"mean": 0.5, "seconds": 1.0}, answers)


def test_a_difference_is_paired_and_its_interval_is_that_of_the_mean_of_task_means() -> None:
    first = entry("one", {"a": [1, 1, 0, 0], "b": [1, 0]})
    other = entry("two", {"a": [1, 0, 1, 1], "b": [0, 0]})
    found = difference(other, first)
    assert found is not None
    assert found.value == pytest.approx((0.25 - 0.5) / 2)
    variance = ((0 - 0.25) ** 2 + (-1 - 0.25) ** 2 + 2 * (1 - 0.25) ** 2) / 4 / 4 + 0.25 / 2
    assert found.high - found.low == pytest.approx(2 * 1.959963984540054 * variance**0.5 / 2)
    same = difference(first, first)
    assert same is not None
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_other_test_images_are_not_compared() -> None:
    first = entry("one", {"a": [1, 1], "b": [1, 0]})
    assert difference(entry("two", {"a": [1], "b": [1, 0]}), first) is None
    assert difference(entry("two", {"a": [1, 1], "c": [1, 0]}), first) is None
    assert difference(entry("two", {}), entry("one", {})) is None


def test_the_best_run_comes_first_whatever_better_means() -> None:
    a, b, c = (entry(name, {}) for name in "abc")
    a = RunEntry(a.folder, a.evaluation, {"mean": 0.2, "seconds": 3.0}, {})
    c = RunEntry(c.folder, c.evaluation, {"mean": None, "seconds": 2.0}, {})
    assert [str(run.folder) for run in ordered([a, b, c], "mean")] == ["b", "a", "c"]
    assert [str(run.folder) for run in ordered([a, b, c], "seconds")] == ["b", "c", "a"]


def test_labels_are_the_options_that_differ() -> None:
    runs = [entry("x", {}, name="kd", lr=lr, seed=seed) for lr, seed in ((0.1, 0), (0.2, 0))]
    assert labels(runs) == ["method.lr=0.1", "method.lr=0.2"]
    assert labels(runs[:1]) == ["x"]
    other = entry("y", {}, name="average", seed=0)  # has no lr
    assert labels([runs[0], other]) == ["method=kd", "method=average"]
    assert labels([runs[0], runs[0]]) == ["x", "x"]


@pytest.mark.full
def test_runs_of_the_command_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["--multirun", "method=average,kd", "hydra.sweep.dir=sweep"]
    assert main([*PAIR, *sweep]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["compare", "outputs/*", "--json", "--csv", "runs.csv"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows] == ["method=kd", "method=average"]
    assert rows[0]["difference"] is None
    assert rows[1]["difference"] == pytest.approx(rows[1]["mean"] - rows[0]["mean"])
    assert rows[1]["difference_low"] < rows[1]["difference"] < rows[1]["difference_high"] < 0
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert [line["folder"] for line in csv.DictReader(file)] == [row["folder"] for row in rows]
    assert main(["compare", "sweep", "--sort", "seconds"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines() if "method" in line] == [
        "method=average",
        "method=kd",
    ]
    assert main(["compare", "sweep", "--sort", "speed"]) == 2
    assert capsys.readouterr().err.startswith("fsmerge: error: --sort: unknown metric 'speed'. ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere*"],
            "nowhere* names no finished run (a folder with evaluation.json). Give folders that `fsmerge merge` "
            "wrote, a glob of them, or the folder of a sweep.",
        ),
        (["--sort"], "fsmerge compare: argument --sort: expected one argument. See fsmerge compare --help."),
        (["old"], "old: evaluation.json is not that of a run of this version (KeyError('rows'))."),
    ],
)
def test_what_cannot_be_compared_is_said(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/evaluation.json").write_text("{}")
    assert main(["compare", *arguments]) == 2
    assert capsys.readouterr().err == f"fsmerge: error: {message}\n"
