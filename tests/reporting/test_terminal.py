"""Progress of a run in the terminal: bars, plain lines, --quiet."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.common.progress import Event
from fsmerge_cli.reporting import terminal
from fsmerge_cli.reporting.terminal import Phases, Reporter

pytestmark = pytest.mark.full

PAIR = ["merge", "+models=digits_mlp_pair", "hardware=cpu", "output.dir=out"]
QUICK = [*PAIR, "method=kd", "method.steps=20"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def new_console(**options: Any) -> Console:
    return Console(file=io.StringIO(), width=150, **options)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "FSMERGE_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_terminal_a_line_is_printed_every_30_seconds_and_at_the_end() -> None:
    clock, console = Clock(), new_console()
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


def test_a_rate_counts_only_steps_of_this_process_and_a_phase_may_restart() -> None:
    clock = Clock()
    phases = Phases(clock)
    phase, new = phases(Event("train", 901, 1000, images=10))  # resumed
    assert (new, phase.note(clock.now), phase.seconds_left(clock.now, 1000)) == (True, "", None)
    clock.now = 2.0
    phase, new = phases(Event("train", 951, 1000, images=10))
    assert (new, phase.note(2.0), phase.seconds_left(2.0, 1000)) == (False, "250 images/s", pytest.approx(1.96))
    phase, new = phases(Event("train", 1, 1000, {"loss": 2.0}))
    assert (new, phase.note(2.0)) == (True, "loss 2")


def test_a_terminal_shows_bars_with_time_left_loss_and_rate() -> None:
    clock, console = Clock(), new_console(force_terminal=True)
    with Reporter(console, clock) as shown:
        for step in range(1, 11):
            shown(Event("train", step, 10, {"loss": 0.5}, images=8))
            clock.now += 1.0
        shown(Event("train", 1, 10, {"loss": 0.25}))  # restarted with half the learning rate
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text(console)).splitlines()[-1]
    assert re.search(r"train +\S+ +1/10 +0:00:00 -:--:-- loss 0\.25", last), last


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_control_characters_with_no_color_or_on_a_dumb_terminal(
    variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich treats any file as a terminal
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


def test_quiet_shows_only_errors(capfd: pytest.CaptureFixture[str]) -> None:
    for command in ([*QUICK, "--quiet"], ["check", *PAIR[1:-1], "-q"], ["compare", "out", "-q", "--csv", "x.csv"]):
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
    before = ["read test images", "read images", "compute statistics", "match units", "capture features", "train"]
    assert phases == [*before, *rows, "compare layers", "certify", "write"]
    assert re.search(r"^train: 20/20 loss \S+  lr \S+  validation \S+  [\d,]+ images/s$", err, re.MULTILINE)


@pytest.mark.parametrize(
    ("method", "phases"),
    [
        ("zipit", {"compute statistics", "match units", "zip units"}),
        ("regmean", {"compute statistics", "match units", "layer inputs", "solve"}),
        ("regmean_pp", {"compute statistics", "match units", "solve"}),
        ("activation_matching", {"compute statistics", "match units"}),
    ],
)
def test_methods_without_training_report_progress(method: str, phases: set[str]) -> None:
    events: list[Event] = []
    merge("digits_mlp_pair", method=method, hardware="cpu", progress=events.append)
    last = {event.phase: event for event in events}
    assert phases <= last.keys()
    assert [event for event in last.values() if event.done != event.total] == []
