"""`fsmerge compare`: paired differences, intervals, order and labels of finished runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from fsmerge_cli.cli import main
from fsmerge_cli.evaluation.metrics import interval as wilson
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.runs.compare import (
    RunEntry,
    bound,
    counted,
    difference,
    interval,
    labels,
    ordered,
    paired,
    points,
    usual_metric,
)

PAIR = ["merge", "+models=digits_mlp_pair", "hardware=cpu"]


def entry(folder: str, correct: dict[str, list[int]], tests: str | None = "1", **options: object) -> RunEntry:
    evaluation = {
        "config": {"method": options, "data": {"name": "x"}},
        "tasks": ["a", "b"],
        "provenance": {"tests_sha256": tests},
    }
    predictions = {f"task.{task}": torch.tensor(values, dtype=torch.uint8) for task, values in correct.items()}
    return RunEntry(Path(folder), evaluation, {"mean": 0.5, "seconds": 1.0}, predictions)


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


def test_runs_with_different_test_images_are_not_compared() -> None:
    first = entry("one", {"a": [1, 1], "b": [1, 0]})
    assert difference(entry("two", {"a": [1], "b": [1, 0]}), first) is None
    assert difference(entry("two", {"a": [1, 1], "c": [1, 0]}), first) is None
    assert difference(entry("two", {}), entry("one", {})) is None
    assert difference(entry("two", {"a": [1, 1], "b": [1, 0]}, tests="2"), first) is None  # others
    old = entry("two", {"a": [1, 1], "b": [1, 0]}, tests=None)  # of a version that did not record them
    assert difference(old, old) is None


def test_a_difference_is_to_the_first_run_on_the_same_tasks() -> None:
    runs = [entry("x", {"a": [1, 1]}), entry("y", {"a": [1, 0], "b": [1]}), entry("z", {"a": [0, 0], "b": [1]})]
    found = paired(runs)
    assert found[:2] == [None, None]
    assert found[2] == difference(runs[2], runs[1])


def test_the_best_run_comes_first_for_every_metric() -> None:
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
    trained = RunEntry(Path("z"), {"config": {"data": {"name": "x"}}}, {}, {})
    assert labels([runs[0], trained]) == ["method=kd", "method=finetune"]


@pytest.mark.full
def test_runs_of_the_command_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(Trained, "total_steps", 200)  # of 2000: still far better than the average
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
    assert main(["compare", "sweep", "--sort", "steps"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines() if "method" in line] == [
        "method=average",
        "method=kd",
    ]
    assert main(["compare", "sweep", "--sort", "calibration_error.low", "--plot", "x.svg"]) == 0
    assert "calibration" in capsys.readouterr().out
    assert "ensemble of the sources" in (tmp_path / "x.svg").read_text()
    assert main(["compare", "..", "--quiet"]) == 2  # a folder of neither runs nor sweeps
    capsys.readouterr()
    assert (main(["compare", "outputs", "--quiet"]), capsys.readouterr()) == (0, ("", ""))
    assert main(["compare", "sweep", "--sort", "speed"]) == 2
    assert capsys.readouterr().err.startswith("fsmerge: error: --sort: unknown metric 'speed'. ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere*"],
            "nowhere* is no finished run (a folder with evaluation.json). Give folders that `fsmerge merge` "
            "or `fsmerge finetune` wrote, a glob of them, or the folder of a sweep.",
        ),
        (["old", "--plot", "x.gif"], "--plot x.gif: give a file that ends in .svg, .png, .pdf."),
        (["--sort"], "fsmerge compare: argument --sort: expected one argument. See fsmerge compare --help."),
        (
            ["old"],
            "old/evaluation.json cannot be read: it is not that of a run of this version (certificates: Field "
            "required). Run the command again, or leave out this folder.",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_reported(
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


def scored(folder: str, mean: float, seconds: float, ensemble: float) -> RunEntry:
    row = {"mean_top1": mean, "mean_relative": None, "joint_top1": {}, "tasks": {}}
    rows = {"merged": row, "ensemble": {**row, "mean_top1": ensemble}}
    evaluation = {"rows": rows, "method": "kd", "config": {}}
    correct = {"task.a": torch.tensor([1, 1, 1, 0] * 9), "task.b": torch.tensor([1, 0] * 9)}
    return RunEntry(Path(folder), evaluation, {"mean": mean, "seconds": seconds}, correct)


def test_a_point_of_the_plot_has_the_interval_of_the_mean_of_task_means() -> None:
    run = scored("x", 0.625, 2.0, 0.9)
    (point,) = points([run], ["method=kd seed=1"], "mean")
    assert (point.label, point.method, point.x, point.y) == ("seed=1", "kd", 2.0, 0.625)
    error = (0.75 * 0.25 / 36 + 0.5 * 0.5 / 18) ** 0.5 / 2
    assert point.low == pytest.approx(0.625 - 1.959963984540054 * error)
    assert point.high == pytest.approx(0.625 + 1.959963984540054 * error)
    assert points([scored("x", 0.625, 0.0, 0.9)], ["x"], "mean") == []  # 0 s is not on a logarithmic axis
    assert interval(run, "joint") is None


@pytest.mark.parametrize("correct", [540, 17, 0])
def test_an_accuracy_has_the_interval_of_the_report(correct: int) -> None:
    predictions = torch.tensor([1] * correct + [0] * (540 - correct), dtype=torch.uint8)
    metrics = {"top1.a": correct / 540, "joint_logits": correct / 540, "mean": correct / 540}
    run = RunEntry(Path("x"), {}, metrics, {"task.a": predictions, "joint.logits": predictions})
    for metric in metrics:
        assert interval(run, metric) == wilson(correct, 540)


def test_the_ensemble_is_plotted_where_it_is_the_same_in_all_runs() -> None:
    assert bound([scored("x", 0.5, 1.0, 0.9), scored("y", 0.6, 1.0, 0.9)], "mean") == 0.9
    assert bound([scored("x", 0.5, 1.0, 0.9), scored("y", 0.6, 1.0, 0.8)], "mean") is None


def test_lower_loss_is_better() -> None:
    a, b = (RunEntry(Path(name), {}, {"loss.x": value}, {}) for name, value in (("a", 2.0), ("b", 1.0)))
    assert [run.folder.name for run in ordered([a, b], "loss.x")] == ["b", "a"]


def test_runs_without_an_accuracy_are_ordered_by_what_is_relative_to_the_sources() -> None:
    def entry(mean: float | None, relative: float | None, **stated: str) -> RunEntry:
        return RunEntry(Path("x"), stated, {"mean": mean, "relative": relative}, {})

    numbers = [entry(None, 0.2), entry(None, 0.6), entry(None, None)]
    assert usual_metric(numbers) == "relative"
    assert [run.metrics["relative"] for run in ordered(numbers, "relative")] == [0.6, 0.2, None]
    assert usual_metric([*numbers, entry(0.5, 0.5)]) == "mean"
    assert usual_metric([entry(None, None)]) == "mean"
    texts, words = entry(0.5, 0.5, inputs="text"), entry(0.5, 0.5, inputs="text", counted="word")
    assert (counted([texts, texts]), counted([words]), counted([entry(1, 1)])) == ("text", "word", "image")
    assert counted([texts, words]) is None
