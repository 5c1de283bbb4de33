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
from fsmerge_cli.reporting.phases import Phases
from fsmerge_cli.reporting.terminal import Reporter, SafeConsole

pytestmark = pytest.mark.full

PAIR = ["merge", "+models=digits_mlp_pair", "hardware=cpu", "output.dir=out"]
QUICK = [*PAIR, "method=kd", "method.steps=20"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Latin(io.StringIO):
    """A terminal without the characters of Unicode's bars and spinners."""

    encoding = "ascii"


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
    assert (new, phase.note(clock.now), phase.seconds_left(clock.now)) == (True, "", None)
    clock.now = 2.0
    phase, new = phases(Event("train", 951, 1000, images=10))
    assert (new, phase.note(2.0), phase.seconds_left(2.0)) == (False, "250 images/s", pytest.approx(1.96))
    phase, new = phases(Event("train", 1, 1000, {"loss": 2.0}))
    assert (new, phase.note(2.0)) == (True, "loss 2")


VALUES = {"loss": 0.0123456, "lr": 1.2e-5, "validation": 0.6748, "features": 0.1, "logits": 0.32}
RUNNING = {
    60: [
        "* train source capitals . ----     1000/2000 5:00 5:00 left",
        "  loss 0.01235  lr 1.2e-05  validation 0.6748  features 0.1",
        "  logits 0.32  213 images/s",
        "* certify                  -------       3/5 0:00 -:-- left",
    ],
    80: [
        "* train source capitals o. -------------               1000/2000 5:00 5:00 left",
        "  loss 0.01235  lr 1.2e-05  validation 0.6748  features 0.1  logits 0.32",
        "  213 images/s",
        "* certify                  -------------------               3/5 0:00 -:-- left",
    ],
    120: [
        "* train source capitals o. --------------------                     1000/2000 5:00 5:00 left",
        "  loss 0.01235  lr 1.2e-05  validation 0.6748  features 0.1  logits 0.32  213 images/s",
        "* certify                  ------------------------                 3/5 0:00 -:-- left",
    ],
}
FINISHED = {
    60: "+ train source capitals o. 2000/2000 5:00  loss 0.01235",
    80: "+ train source capitals o. 2000/2000 5:00  loss 0.01235  lr 1.2e-05",
    120: "+ train source capitals o. 2000/2000 5:00  loss 0.01235  lr 1.2e-05  validation 0.6748  features 0.1"
    "  logits 0.32",
}


@pytest.mark.parametrize("width", RUNNING)
def test_bar_step_and_time_left_fit_every_terminal_and_a_finished_phase_is_one_line(width: int) -> None:
    clock = Clock()
    console = SafeConsole(file=Latin(), width=width, force_terminal=True, color_system=None)
    reporter = Reporter(console, clock)
    name = "train source capitals of a long name"
    reporter(Event(name, 1, 2000, VALUES, images=64))
    clock.now = 300.0
    reporter(Event(name, 1000, 2000, VALUES, images=64))
    reporter(Event("certify", 3, 5))
    console.print(reporter._view)
    running = re.sub(r"(?m)^[-\\|/]", "*", text(console)).splitlines()
    assert [row.rstrip() for row in running] == RUNNING[width]
    console.file = Latin()
    reporter(Event(name, 2000, 2000, VALUES, images=64))
    assert text(console) == FINISHED[width] + "\n"


def test_only_running_phases_have_a_bar_and_a_repeated_last_step_shows_nothing_new() -> None:
    console = SafeConsole(file=Latin(), width=80, force_terminal=True, color_system=None)
    clock = Clock()
    reporter = Reporter(console, clock)
    for done in (1, 5, 5):
        reporter(Event("certify", done, 5))
    reporter(Event("train", 7, 10, {"loss": 0.5}))
    reporter(Event("train", 1, 10, {"loss": 0.25}))  # restarted with half the learning rate
    assert text(console) == "+ certify                  5/5 0:00\n"
    console.print(reporter._view)
    assert re.search(r"train +-* +1/10 0:00 -:-- left\n  loss 0\.25\n$", text(console)), text(console)


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
    rows = ["hash test images", "evaluate sources", "evaluate average", "evaluate merged"]
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
