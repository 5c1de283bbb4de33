"""Sweeps: summary files, parallel jobs, interruption and resumption, and Optuna's search."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from fsmerge_cli.cli import main
from fsmerge_cli.cli.keys import _listed
from fsmerge_cli.cli.merge_command import rewrite
from fsmerge_cli.cli.sweep import SweepSummary
from fsmerge_cli.common.progress import Event
from fsmerge_cli.reporting.terminal import Reporter
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.full

SWEEP = ["merge", "--multirun", "+models=digits_mlp_pair", "hardware=cpu", "hydra.sweep.dir=sweep"]
THREE = [*SWEEP, "method=kd", "method.steps=20", "seed=0,1,2"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def table(name: str) -> list[dict[str, str]]:
    with Path("sweep", name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_ends_with_a_plot_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main([*SWEEP, "method=average,slerp"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.endswith("\nall runs: sweep/summary.csv   sweep/summary.svg\n")
    plot = Path("sweep/summary.svg").read_text()
    assert ">average<" in plot
    assert ">slerp<" in plot
    assert [Path(row["folder"], "evaluation.json").is_file() for row in table("summary.csv")] == [True, True]
    assert [path.name for path in Path("sweep").glob(".*")] == [".fsmerge-sweep.json"]


def test_without_matplotlib_a_sweep_ends_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*SWEEP, "method=average", "seed=0,1"]) == 0
    assert capsys.readouterr().out.endswith(
        "\nnote: no plot of the runs: a plot needs matplotlib. Install it: pip install matplotlib\n"
        "all runs: sweep/summary.csv\n"
    )


def test_a_sweep_reports_the_files_that_it_could_not_write(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep/jobs").mkdir(parents=True)
    Path("sweep/summary.csv").mkdir()  # writing the file fails, as on a full disk
    for number, (a, b) in enumerate(((0.5, 0.9), (0.8, 0.8), (0.4, 0.7))):
        scores = {"tasks": {"a": a, "b": b}, "mean": (a + b) / 2, "joint": None, "seconds": 1.0}
        job = {"run": f"method.task_weights.1={number}", "exit_code": 0, "folder": f"gone/{number}", **scores}
        Path(f"sweep/jobs/{number:05d}.json").write_text(json.dumps(job))
    SweepSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}}}))
    out = capsys.readouterr().out
    assert out.count("method.task_weights.1=") == 3
    assert out.endswith(
        "\nnote: sweep/summary.csv could not be written: File exists\n"
        "note: no plot of the runs: gone/0 is no finished run (a folder with evaluation.json). Give folders "
        "that `fsmerge merge` or `fsmerge finetune` wrote, a glob of them, or the folder of a sweep.\n"
        "all runs: sweep/pareto.csv\n"
    )
    assert [row["front"] for row in table("pareto.csv")] == ["True", "True", "False"]


class RecordedSteps:
    """Records the training steps of every job; stop: interrupts the process in the third job."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: bool) -> None:
        self.jobs: list[list[int]] = []
        before = Reporter.__call__

        def call(reporter: Reporter, event: Event) -> None:
            if event.phase == "train":
                if not self.jobs or reporter is not self.reporter:
                    self.jobs.append([])
                self.reporter = reporter
                self.jobs[-1].append(event.done)
                if stop and len(self.jobs) == 3 and event.done == 10:
                    os.kill(os.getpid(), signal.SIGINT)
            before(reporter, event)

        monkeypatch.setattr(Reporter, "__call__", call)


@pytest.mark.full
def test_an_interrupted_sweep_repeats_only_the_interrupted_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupted = RecordedSteps(patch, stop=True)
        assert main([*THREE, "hydra.sweep.dir=other"]) == 130
    assert "Continue with\n  fsmerge merge --multirun " in capsys.readouterr().err
    assert len(list(Path("outputs").glob("*/evaluation.json"))) == 2
    resumed = RecordedSteps(monkeypatch, stop=False)
    assert main([*THREE, "resume=true"]) == 0, capsys.readouterr().err
    assert resumed.jobs == [list(range(interrupted.jobs[2][-1] + 1, 21))]
    assert capsys.readouterr().out.count("already finished: nothing was run") == 2
    rows = table("summary.csv")
    assert [row["run"].split()[-2] for row in rows] == ["seed=0", "seed=1", "seed=2"]
    assert all(float(row["mean"]) > 0 for row in rows)


KILLED = f"""
import os, signal
from fsmerge_cli.cli import main
from fsmerge_cli.reporting.terminal import Reporter
before, seen = Reporter.__call__, []
def call(reporter, event):
    before(reporter, event)
    if event.phase == "train" and event.done == 10:
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
Reporter.__call__ = call
main({[*THREE, "checkpoint.every=4"]})
"""


@pytest.mark.full
def test_a_killed_sweep_repeats_only_the_killed_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert len(list(Path("outputs").glob("*/evaluation.json"))) == 2
    resumed = RecordedSteps(monkeypatch, stop=False)
    assert main([*THREE, "checkpoint.every=4", "resume=true"]) == 0, capsys.readouterr().err
    assert resumed.jobs == [list(range(9, 21))]  # from the last saved training state
    assert len(table("summary.csv")) == 3


@pytest.mark.full
def test_parallel_jobs_give_the_results_of_sequential_jobs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `sweep` is not installed")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    jobs = [*SWEEP, "method=kd", "method.steps=4,0,5", "hardware.threads=1"]
    assert main([*jobs, "launcher=joblib", "hydra.launcher.n_jobs=2"]) == 2
    message = "fsmerge: error: method.steps: should be greater than or equal to 1, got 0.\n"
    assert capfd.readouterr().err.count(message) == 1
    parallel = table("summary.csv")
    assert [row["exit_code"] for row in parallel] == ["0", "2", "0"]
    assert main([*jobs, "output.overwrite=true"]) == 2
    for row, sequential in zip(parallel, table("summary.csv")):
        assert {**row, "seconds": "", "run": ""} == {**sequential, "seconds": "", "run": ""}


# Optuna


def search(*arguments: str) -> list[str]:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper._impl", reason="the extra `sweep` is not installed")
    return [*SWEEP, "sweep=optuna", *arguments]


@pytest.mark.full
def test_a_search_plots_the_pareto_front_of_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = search("method=slerp", "method.t=interval(0,1)", "hydra.sweeper.n_trials=5")
    assert main(jobs) == 0, capsys.readouterr().err
    rows = table("pareto.csv")
    assert len(rows) == 5
    values = [(float(row["low"]), float(row["high"])) for row in rows]
    for row, own in zip(rows, values):
        beaten = any(o[0] >= own[0] and o[1] >= own[1] and o != own for o in values)
        assert row["front"] == str(not beaten)
    assert "low: top-1 accuracy, %" in Path("sweep/pareto.svg").read_text()
    # Optuna receives the same accuracies, so its Pareto front is the same.
    found = Path("sweep/optimization_results.yaml").read_text()
    for row, own in zip(rows, values):
        assert (str(own[0]) in found and str(own[1]) in found) or row["front"] == "False"
    # The same command proposes the same jobs, so the finished runs are reused.
    first = [row["folder"] for row in rows]
    capsys.readouterr()
    assert main(jobs) == 0
    assert capsys.readouterr().out.count("already finished: nothing was run") == 5
    assert [row["folder"] for row in table("pareto.csv")] == first


@pytest.mark.full
def test_task_weights_are_searched_without_another_search_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(search("method=average", "hydra.sweeper.n_trials=3")) == 0, capsys.readouterr().err
    weights = []
    for row in table("pareto.csv"):
        weights.append(yaml.safe_load(Path(row["folder"], "config.yaml").read_text())["method"]["task_weights"])
        assert f"method.task_weights.1={weights[-1][1]}" in row["run"]
    assert [own[0] for own in weights] == [1.0] * 3
    assert len({own[1] for own in weights}) == 3
    assert all(1 / 16 <= own[1] <= 16 for own in weights)


@pytest.mark.full
def test_a_search_with_one_direction_maximises_the_mean(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = search("method=slerp", "method.t=range(0,1,0.25)", "hydra.sweeper.n_trials=3")
    assert main([*jobs, "hydra.sweeper.direction=maximize"]) == 0, capsys.readouterr().err
    best = max(float(row["mean"]) for row in table("summary.csv"))
    assert f"best_value: {best}" in Path("sweep/optimization_results.yaml").read_text()


@pytest.mark.full
def test_failed_jobs_of_a_search_are_reported_and_the_search_continues(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = search("method=slerp", "method.t=choice(0.5,2)", "hydra.sweeper.sampler.seed=1")
    assert main([*jobs, "hydra.sweeper.n_trials=4"]) == 2
    codes = [row["exit_code"] for row in table("summary.csv")]
    assert set(codes) == {"0", "2"}
    assert "fsmerge: error: method.t: should be less than or equal to 1, got 2.\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["method=slerp"],
            "sweep=optuna: method=slerp has no task weights, so there is nothing to search over. Give a range: "
            "'method.KEY=interval(0.1,1)' (or choice(...), range(...)), or use method=fs_merge.",
        ),
        (
            ["method=slerp", "method.t=choice(2,3)", "hydra.sweeper.direction=maximize"],
            "all jobs of this search failed, so there is no best one. Their errors are shown above.",
        ),
    ],
)
def test_an_impossible_search_is_reported(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(search(*arguments, "hydra.sweeper.n_trials=2")) in (1, 2)
    assert capsys.readouterr().err.endswith(f"fsmerge: error: {message}\n")


@pytest.mark.parametrize(("key", "plugin"), [("launcher=joblib", "joblib"), ("sweep=optuna", "optuna")])
def test_without_the_plugin_the_message_names_the_package(
    key: str, plugin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra.core.config_store import ConfigStore

    group = ConfigStore.instance().repo["hydra"]["launcher" if plugin == "joblib" else "sweeper"]
    monkeypatch.delitem(group, f"{plugin}.yaml", raising=False)
    assert main([*SWEEP, key]) == 2
    what = {"joblib": "Hydra's joblib launcher", "optuna": "Hydra's Optuna sweeper"}[plugin]
    assert capsys.readouterr().err == (
        f"fsmerge: error: {key} needs {what}, which is not installed. Install it: pip install "
        f"{'hydra-joblib-launcher' if plugin == 'joblib' else 'hydra-optuna-sweeper'}\n"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"0": 1, "1": 2}, [1, 2]),
        ({1: 3, 0: 4}, [4, 3]),
        ({"0": 1, "2": 2}, None),
        ({}, None),
        ([1], None),
        (7, None),
    ],
)
def test_the_entries_of_a_list_can_be_given_separately(given: Any, expected: Any) -> None:
    assert _listed(given) == (given if expected is None else expected)
    assert rewrite("method.task_weights.0=2") == "++method.task_weights.0=2"
    assert rewrite("method.lr=2") == "method.lr=2"
