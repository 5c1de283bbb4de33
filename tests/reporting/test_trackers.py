"""Experiment trackers: every one gets the same values at the same steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.common.progress import Event
from fsmerge_cli.reporting import trackers
from fsmerge_cli.reporting.trackers import TRACKERS, Tracking
from tests.reporting.test_logs import QUICK

Values = list[tuple[dict[str, float], int]]


class Kept:
    """A tracker that keeps what it gets, by name."""

    all: ClassVar[dict[str, Kept]] = {}

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.closed = name, folder, 0
        self.values: Values = []
        Kept.all[folder.name] = self

    def add(self, values: Mapping[str, float], step: int) -> None:
        self.values.append((dict(values), step))

    def close(self, failed: bool = False) -> None:
        self.closed += 1
        self.failed = failed


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kept]:
    """wandb and mlflow as :class:`Kept`, from a package that is installed."""
    monkeypatch.setattr(Kept, "all", {})
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(TRACKERS, name, ("json", Kept))
    return Kept.all


@pytest.mark.full
def test_both_trackers_get_every_loss_and_the_accuracies(kept: dict[str, Kept]) -> None:
    assert main([*QUICK, "output.wandb=true", "output.mlflow=true"]) == 0
    wandb, mlflow = kept["wandb"], kept["mlflow"]
    assert wandb.values == mlflow.values
    assert (wandb.name, wandb.closed, mlflow.closed) == ("out", 1, 1)
    losses = [(step, values["train/loss"]) for values, step in wandb.values if "train/loss" in values]
    evaluation = json.loads(Path("out/evaluation.json").read_text())
    assert [step for step, _ in losses] == [*range(1, 21)]
    assert losses[-1][1] == pytest.approx(evaluation["training"]["final_loss"])
    found = {name: value for values, step in wandb.values for name, value in values.items() if step == 0}
    assert found["top1 low/merged"] == evaluation["rows"]["merged"]["tasks"]["low"]["top1"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_before_anything_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    assert main([*QUICK, f"output.{name}=true"]) == 2
    assert capsys.readouterr().err == (
        f"fsmerge: error: output.{name}=true needs the package {name}, which is not installed. Install it: "
        f"pip install {name}\n"
    )
    assert not Path("out").exists()


@pytest.mark.full
def test_a_tracker_that_cannot_start_is_an_error_of_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(name: str, folder: Path) -> Any:
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(TRACKERS, "wandb", ("json", fails))
    assert main([*QUICK, "output.wandb=true"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "fsmerge: error: output.wandb=true: json cannot start a run (api_key not configured). Set it up by its "
        "own environment variables, or remove output.wandb=true."
    )
    assert not Path("out").exists()


@pytest.mark.filterwarnings("ignore::Warning")  # of mlflow and what it imports
def test_mlflow_keeps_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    tracking = Tracking(["mlflow"], "a run", tmp_path)
    for step in (1, 2):
        tracking(Event("train", step, 2, {"loss": 1 / step}))
    tracking.final({"rows": {"a (b)": {"tasks": {}, "mean_top1": 0.5, "joint_top1": {}}}})
    tracking.close()
    (run,) = mlflow.search_runs(experiment_names=["fsmerge"], output_format="list")
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.metrics == {"train/loss": 0.5, "top1 mean/a _b_": 0.5}


@pytest.mark.filterwarnings("ignore::Warning")  # of wandb and what it imports
def test_weights_and_biases_keeps_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracking = Tracking(["wandb"], "a run", tmp_path)
    for step in (1, 2):
        tracking(Event("train", step, 2, {"loss": 1 / step}))
    tracking.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in file.read_bytes()


def test_a_tracker_that_fails_later_ends_nothing_and_is_logged(
    kept: dict[str, Kept], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = Tracking(["wandb", "mlflow"], "run", tmp_path)
    tracking(Event("train", 1, 3, {"loss": 1.0}))

    def gone(values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("no route to the server")

    kept["wandb"].add = gone  # type: ignore[method-assign]
    tracking(Event("train", 2, 3, {"loss": 0.5}))
    tracking(Event("train", 3, 3, {"loss": 0.2}))
    tracking.close(failed=True)
    assert [step for _, step in kept["mlflow"].values] == [1, 2, 3]
    assert kept["mlflow"].failed
    assert [record.getMessage() for record in caplog.records] == [
        "Kept gets no further values: no route to the server"
    ]
