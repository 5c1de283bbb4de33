"""What a person sees while a run lasts: bars, plain lines, nothing; and what the log and TensorBoard keep."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, FsmergeError, OutputError
from fsmerge_cli.common.progress import Event
from fsmerge_cli.reporting import terminal
from fsmerge_cli.reporting.logs import RunLog, _Board
from fsmerge_cli.reporting.terminal import Phases, Reporter

pytestmark = pytest.mark.full

PAIR = ["merge", "+models=digits_mlp_pair", "hardware=cpu", "output.dir=out"]
QUICK = [*PAIR, "method=kd", "method.steps=20"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def page(**options: Any) -> Console:
    return Console(file=io.StringIO(), width=150, **options)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "FSMERGE_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_terminal_a_line_comes_every_half_minute_and_at_the_end() -> None:
    clock, console = Clock(), page()
    with Reporter(console, clock) as shown:
        for step in range(1, 101):
            shown(Event("train", step, 100, {"loss": 1 / step}, images=32))
            clock.now += 1.0
        shown(Event("the disk is full; the run goes on", 1, 1))
    assert text(console).splitlines() == [
        "train: 31/100 loss 0.03226  32 images/s  69 s left",
        "train: 61/100 loss 0.01639  32 images/s  39 s left",
        "train: 91/100 loss 0.01099  32 images/s  9 s left",
        "train: 100/100 loss 0.01  32 images/s",
        "the disk is full; the run goes on",
    ]


def test_a_rate_counts_what_was_done_here_and_a_phase_may_begin_again() -> None:
    clock = Clock()
    phases = Phases(clock)
    phase, new = phases(Event("train", 901, 1000, images=10))  # resumed
    assert (new, phase.note(clock.now), phase.seconds_left(clock.now, 1000)) == (True, "", None)
    clock.now = 2.0
    phase, new = phases(Event("train", 951, 1000, images=10))
    assert (new, phase.note(2.0), phase.seconds_left(2.0, 1000)) == (False, "250 images/s", pytest.approx(1.96))
    phase, new = phases(Event("train", 1, 1000, {"loss": 2.0}))
    assert (new, phase.note(2.0)) == (True, "loss 2")


def test_a_terminal_has_bars_with_time_left_loss_and_rate() -> None:
    clock, console = Clock(), page(force_terminal=True)
    with Reporter(console, clock) as shown:
        for step in range(1, 11):
            shown(Event("train", step, 10, {"loss": 0.5}, images=8))
            clock.now += 1.0
        shown(Event("train", 1, 10, {"loss": 0.25}))  # again, with half the learning rate
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text(console)).splitlines()[-1]
    assert re.search(r"train +\S+ +1/10 +0:00:00 -:--:-- loss 0\.25", last), last


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_it_plain_gets_no_control_characters(
    variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes anything for a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.console().is_terminal
    monkeypatch.setenv(*variable)
    console = terminal.console()
    assert not console.is_terminal
    console.file = io.StringIO()
    with Reporter(console) as shown:
        shown(Event("train", 10, 10))
    console.print("bold", style="bold red")
    assert console.file.getvalue() == "train: 10/10\nbold\n"


def test_quiet_shows_nothing_but_errors(capfd: pytest.CaptureFixture[str]) -> None:
    for command in ([*QUICK, "--quiet"], ["check", *PAIR[1:], "-q"], ["compare", "out", "-q", "--csv", "x.csv"]):
        assert (main(command), capfd.readouterr()) == (0, ("", ""))
    assert main([*QUICK, "-q"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("fsmerge: error: ")
    sweep = ["--multirun", "-q", "seed=0,1", "method=average", "output.dir=null", "hydra.sweep.dir=sweep"]
    assert (main([*PAIR[:-1], *sweep]), capfd.readouterr()) == (0, ("", ""))
    assert Path("sweep/summary.csv").is_file()
    assert terminal.console().quiet is False


def test_a_pipe_gets_no_control_characters(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(QUICK) == 0
    out, err = capfd.readouterr()
    assert not set("\x1b\r\b") & {*out, *err}
    phases = [line.partition(":")[0] for line in err.splitlines()]
    rows = ["evaluate sources", "evaluate average", "evaluate merged"]
    before = ["look at test images", "read images", "statistics", "match units", "capture", "train"]
    assert phases == [*before, *rows, "compare layers", "certify", "write"]
    assert re.search(r"^train: 20/20 loss \S+  lr \S+  validation \S+  [\d,]+ images/s$", err, re.MULTILINE)


@pytest.mark.parametrize(
    ("method", "phases"),
    [
        ("zipit", {"statistics", "match units", "zip units"}),
        ("regmean", {"statistics", "match units", "inputs of the layers", "solve"}),
        ("regmean_pp", {"statistics", "match units", "solve"}),
        ("activation_matching", {"statistics", "match units"}),
    ],
)
def test_methods_without_training_say_how_far_they_are(method: str, phases: set[str]) -> None:
    events: list[Event] = []
    merge("digits_mlp_pair", method=method, hardware="cpu", progress=events.append)
    last = {event.phase: event for event in events}
    assert phases <= last.keys()
    assert [event for event in last.values() if event.done != event.total] == []


# The log


def told(log: RunLog, *events: Event) -> None:
    for event in events or (Event("train", 1, 2, {"loss": 1.0}), Event("train", 2, 2, {"loss": 0.5})):
        log(event)


def failing(log: RunLog, error: BaseException) -> Path:
    def run() -> None:
        with log:
            told(log)
            raise error

    with pytest.raises(type(error)):
        run()
    return log.place / "run.log"


def test_a_finished_run_has_its_log_inside() -> None:
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
            told(log)
            logging.getLogger("some.library").warning("look out")
    lines = (log.place / "run.log").read_text()
    assert "UserWarning: before the first event" in lines
    assert "WARNING look out" in lines
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "kept"), [(OutputError("no"), False), (FsmergeError("no"), True), (KeyboardInterrupt(), True)]
)
def test_what_fails_keeps_its_log_and_a_mistake_leaves_nothing(
    error: BaseException, kept: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "far/below/out"
    failing(RunLog(folder, "command"), error)
    assert [path.name for path in tmp_path.iterdir()] == (["far"] if kept else [])
    if kept:
        lines = (tmp_path / "far/below/.out.logs/run.log").read_text()
        assert re.search(rf"ERROR   Traceback .*{type(error).__name__}", lines, re.DOTALL)
        assert error.__notes__ == ["the log is far/below/.out.logs/run.log"]


def test_a_run_that_never_begins_writes_no_log(tmp_path: Path) -> None:
    with pytest.raises(FsmergeError), RunLog(tmp_path / "out", "command"):
        raise FsmergeError("before anything")
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_goes_on_in_its_log_and_a_new_one_begins_again(tmp_path: Path) -> None:
    for resume, commands in ((False, ["first"]), (True, ["first", "second"]), (False, ["third"])):
        log = failing(RunLog(tmp_path / "out", commands[-1], resume=resume), FsmergeError("no"))
        lines = log.read_text().splitlines()
        assert [line.split()[-1] for line in lines if line.split()[-1] in ("first", "second", "third")] == commands
    log = failing(RunLog(tmp_path / "out", "other", resume=True), ConfigError("other options"))
    assert "third" in log.read_text()  # a mistake takes nothing away that was there


def test_a_log_that_cannot_be_written_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "mkdir", refuse)
    with RunLog(tmp_path / "out", "command") as log:
        told(log)
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
    assert max(value for _, value in found["train/lr"]) == pytest.approx(0.003, rel=0.2)  # after the release
    merged = evaluation["rows"]["merged"]
    assert found["top1_low/merged"] == [(0, pytest.approx(merged["tasks"]["low"]["top1"]))]
    assert found["top1_mean/merged"] == [(0, pytest.approx(merged["mean_top1"]))]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_training_that_begins_again_goes_on_behind_its_last_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    with RunLog(tmp_path / "out", "command", tensorboard=True) as log:
        told(log)
        told(log)
    assert scalars(log.place / "tensorboard") == {"train/loss": [(1, 1.0), (2, 0.5), (3, 1.0), (4, 0.5)]}


def test_steps_of_a_resumed_training_go_on_behind_those_of_an_earlier_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = _Board(tmp_path)
    steps: list[int] = []
    monkeypatch.setattr(board, "_add", lambda values, step: steps.append(step))
    board(Event("train", 4, 4))  # found finished
    board(Event("train", 5, 8))  # found so far: 5 of the second stage
    for step in (6, 7, 8):
        board(Event("train", step, 8, {"loss": 1.0}))
    assert steps == [10, 11, 12]


def test_without_tensorboard_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("fsmerge_cli.reporting.logs.find_spec", lambda name: None)
    assert main([*QUICK, "output.tensorboard=true"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: output.tensorboard=true needs the package tensorboard, which is not installed. Install "
        "it: pip install 'fsmerge[tensorboard]'\n"
    )
    assert list(Path().iterdir()) == []
