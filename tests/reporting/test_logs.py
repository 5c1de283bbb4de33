"""run.log and the TensorBoard files of finished, failed, resumed and interrupted runs."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, FsmergeError, OutputError
from fsmerge_cli.common.progress import Event
from fsmerge_cli.reporting.logs import RunLog
from fsmerge_cli.reporting.trackers import Tracking

pytestmark = pytest.mark.full

QUICK = ["merge", "+models=digits_mlp_pair", "hardware=cpu", "output.dir=out", "method=kd", "method.steps=20"]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "FSMERGE_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def write_events(log: RunLog, *events: Event) -> None:
    for event in events or (Event("train", 1, 2, {"loss": 1.0}), Event("train", 2, 2, {"loss": 0.5})):
        log(event)


def failing(log: RunLog, error: BaseException) -> Path:
    def run() -> None:
        with log:
            write_events(log)
            raise error

    with pytest.raises(type(error)):
        run()
    return log.place / "run.log"


def test_a_finished_run_has_its_log_in_its_folder() -> None:
    assert main(QUICK) == 0
    lines = Path("out/run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO {4}\S*", line) for line in lines)
    assert lines[0].endswith(
        "fsmerge merge +models=digits_mlp_pair hardware=cpu output.dir=out method=kd method.steps=20"
    )
    for part in ("train: 20/20", "certify: 5/5", "│ merged ", "merged model: out/merged"):
        assert any(part in line for line in lines)
    assert [path.name for path in Path().iterdir()] == ["out"]


def test_warnings_of_libraries_go_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with RunLog(tmp_path / "out", "command") as log:
            warnings.warn("before the first event", UserWarning, stacklevel=1)
            write_events(log)
            logging.getLogger("some.library").warning("look out")
    lines = (log.place / "run.log").read_text()
    assert "UserWarning: before the first event" in lines
    assert "WARNING look out" in lines
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "kept"), [(OutputError("no"), False), (FsmergeError("no"), True), (KeyboardInterrupt(), True)]
)
def test_a_failed_run_keeps_its_log_except_after_a_user_error(
    error: BaseException, kept: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "far/below/out"
    failing(RunLog(folder, "command"), error)
    assert [path.name for path in tmp_path.iterdir()] == (["far"] if kept else [])
    if kept:
        lines = (tmp_path / "far/below/.out.logs/run.log").read_text()
        assert re.search(rf"ERROR   Traceback .*{type(error).__name__}", lines, re.DOTALL)
        assert error.__notes__ == ["the log is far/below/.out.logs/run.log"]


def test_a_run_that_fails_before_its_first_event_writes_no_log(tmp_path: Path) -> None:
    with pytest.raises(FsmergeError), RunLog(tmp_path / "out", "command"):
        raise FsmergeError("before anything")
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_appends_to_its_log_and_a_new_run_replaces_it(tmp_path: Path) -> None:
    for resume, commands in ((False, ["first"]), (True, ["first", "second"]), (False, ["third"])):
        log = failing(RunLog(tmp_path / "out", commands[-1], resume=resume), FsmergeError("no"))
        lines = log.read_text().splitlines()
        assert [line.split()[-1] for line in lines if line.split()[-1] in ("first", "second", "third")] == commands
    log = failing(RunLog(tmp_path / "out", "other", resume=True), ConfigError("other options"))
    assert "third" in log.read_text()  # a user error keeps the existing log


def test_a_log_that_cannot_be_written_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "mkdir", refuse)
    with RunLog(tmp_path / "out", "command") as log:
        write_events(log)
        log.finish("done", {"rows": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard and what it imports
def test_tensorboard_has_losses_rates_and_accuracies() -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    assert main([*QUICK, "output.tensorboard=true"]) == 0
    found = scalars(Path("out/tensorboard"))
    evaluation = json.loads(Path("out/evaluation.json").read_text())
    assert [step for step, _ in found["train/loss"]] == list(range(1, 21))
    assert found["train/loss"][-1][1] == pytest.approx(evaluation["training"]["final_loss"])
    validation = [(v["step"], pytest.approx(v["loss"])) for v in evaluation["training"]["validation"]]
    assert found["train/validation"] == validation
    assert max(value for _, value in found["train/lr"]) == pytest.approx(0.003, rel=0.2)  # after the fold
    merged = evaluation["rows"]["merged"]
    assert found["top1_low/merged"] == [(0, pytest.approx(merged["tasks"]["low"]["top1"]))]
    assert found["top1_mean/merged"] == [(0, pytest.approx(merged["mean_top1"]))]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_steps_of_a_restarted_training_continue_after_its_last_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    with RunLog(tmp_path / "out", "command", trackers=["tensorboard"]) as log:
        write_events(log)
        write_events(log)
    assert scalars(log.place / "tensorboard") == {"train/loss": [(1, 1.0), (2, 0.5), (3, 1.0), (4, 0.5)]}


def test_steps_of_a_resumed_training_continue_after_those_of_an_earlier_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Tracking([], "run", tmp_path)
    steps: list[int] = []
    monkeypatch.setattr(board, "_add", lambda values, step: steps.append(step))
    board(Event("train", 4, 4))  # finished by an earlier process
    board(Event("train", 5, 8))  # an earlier process did 5 steps of the second stage
    for step in (6, 7, 8):
        board(Event("train", step, 8, {"loss": 1.0}))
    assert steps == [10, 11, 12]


def test_without_tensorboard_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("fsmerge_cli.reporting.trackers.find_spec", lambda name: None)
    assert main([*QUICK, "output.tensorboard=true"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: output.tensorboard=true needs the package tensorboard, which is not installed. Install "
        "it: pip install tensorboard\n"
    )
    assert list(Path().iterdir()) == []
