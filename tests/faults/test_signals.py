"""A signal ends every command with one message and the exit code 128 + its number, at whatever moment it comes.

What a shell sees is 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP, a closed terminal); never a traceback.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.common import signals
from fsmerge_cli.common.errors import Stopped
from fsmerge_cli.training import interrupts
from fsmerge_cli.training.interrupts import catch_signals, stop_on_signals
from tests.support.killed import Kill, fsmerge
from tests.support.paths import REPOSITORY

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
MERGE = ["merge", "+models=digits_mlp_pair", "method.steps=30", "method.finetune_share=0.5", "hardware.threads=1"]
BEFORE = ("composing", "loading", "read images")

SAVED = ("train", "evaluate", "certify", "model", "rename")
"""Phases in which a training state exists, which the message offers to continue."""

FINISHED = ("state", "table")

PHASES = [*BEFORE, *SAVED, *FINISHED]
"""From the first phase of `fsmerge merge` to the last."""


def message(phase: str, number: int, out: Path) -> str:
    name = signal.Signals(number).name
    if phase in SAVED:
        step = "step 2 of 15" if phase == "train" else "step 15 of 15"
        command = " ".join(["fsmerge", *MERGE, f"output.dir={out}", "resume=true"])
        return (
            f"fsmerge: interrupted by {name}; the training state is saved ({step}). Continue with\n  {command}\n"
        )
    if phase in FINISHED:
        return f"fsmerge: interrupted by {name}; the run had finished: {out}\n"
    return f"fsmerge: interrupted by {name}. Run the same command again.\n"


@pytest.mark.parametrize("phase", [pytest.param(p, marks=[pytest.mark.full] * (p != "loading")) for p in PHASES])
def test_a_signal_in_any_phase_ends_with_a_message(phase: str, tmp_path: Path) -> None:
    number = SIGNALS[PHASES.index(phase) % 3]
    out = tmp_path / "out"
    ran = fsmerge([*MERGE, f"output.dir={out}"], tmp_path / "log", Kill(phase, 0, number))
    assert ran.code == 128 + number
    assert ran.err.endswith(message(phase, number, out))
    assert "Traceback" not in ran.err
    left = {path.name for path in tmp_path.iterdir()} - {"log", ".out.logs"}
    assert left == ({"out"} if phase in FINISHED else {".out.state"} if phase in SAVED else set())


@pytest.mark.full
@pytest.mark.parametrize("phase", ["loading", "train", "evaluate"])
def test_two_signals_in_a_second_are_one(phase: str, tmp_path: Path) -> None:
    """A launcher forwards Ctrl-C that the terminal has sent as well; a closing terminal sends SIGHUP twice."""
    out = tmp_path / "out"
    ran = fsmerge([*MERGE, f"output.dir={out}"], tmp_path / "log", Kill(phase, 0, signal.SIGINT), again=0.2)
    assert ran.code == 130
    assert ran.err.endswith(message(phase, signal.SIGINT, out))
    assert "Traceback" not in ran.err


START = "import sys; from fsmerge_cli.cli import main; sys.exit(main())"


def started(arguments: list[str], **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.full
@pytest.mark.parametrize(("number", "seconds"), [*zip(SIGNALS, (0.7, 1.3, 2.2))])
def test_a_signal_during_the_imports(number: signal.Signals, seconds: float, tmp_path: Path) -> None:
    process = started([*MERGE, "method.steps=100000", f"output.dir={tmp_path / 'out'}"])
    time.sleep(seconds)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]  # a library that misses the module being imported may say so before
    assert error.endswith(f"fsmerge: interrupted by {number.name}. Run the same command again.\n")
    assert "Traceback" not in error
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize(
    "pause", [pytest.param(0.02, marks=pytest.mark.slow), 0.4, pytest.param(1.1, marks=pytest.mark.slow)]
)
def test_five_times_ctrl_c(pause: float, tmp_path: Path) -> None:
    process = started([*MERGE, "method.steps=100000", "checkpoint.every=1", f"output.dir={tmp_path / 'out'}"])
    while not (tmp_path / ".out.state").exists():
        assert process.poll() is None
        time.sleep(0.1)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "fsmerge: interrupted by SIGINT; the training state is saved (step " in printed
    assert {path.name for path in tmp_path.iterdir()} == {".out.state", ".out.logs"}


@pytest.mark.slow
def test_nohup_keeps_sighup_ignored(tmp_path: Path) -> None:
    """As under `nohup`, and as Ctrl-C in a script's background job: what is ignored at the start stays ignored."""
    process = started(
        [*MERGE, f"output.dir={tmp_path / 'out'}"], preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    for _ in range(30):
        time.sleep(0.1)
        process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.full
def test_a_closed_terminal(tmp_path: Path) -> None:
    """The terminal vanishes: writing to it fails, and the run still saves its state and ends with 129."""
    master, slave = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", START, *MERGE, "method.steps=100000", "checkpoint.every=1", f"output.dir={out}"],
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(slave)
    os.set_blocking(master, False)
    while not (tmp_path / ".out.state").exists():
        assert process.poll() is None
        time.sleep(0.1)
        with suppress(BlockingIOError):
            os.read(master, 65536)
    os.close(master)
    assert process.wait(60) == 129
    assert {path.name for path in tmp_path.iterdir()} == {".out.state", ".out.logs"}


@pytest.mark.parametrize("arguments", [["list"], ["schema"], ["--version"], ["compare", "nowhere"]])
def test_every_command_restores_the_handlers_of_its_caller(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    main(arguments)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_raises_and_the_clean_up_is_not_cut_off(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # ignored
            cleaned.append(True)

    with stop_on_signals():
        with pytest.raises(Stopped) as stop:
            work()
        assert cleaned == [True]
        assert (str(stop.value), stop.value.exit_code) == (f"interrupted by {number.name}", 128 + number)
        monkeypatch.setattr(interrupts, "CLEANING", 0.0)
        with pytest.raises(Stopped):  # not for ever
            os.kill(os.getpid(), number)


def test_a_signal_that_python_drops_comes_again() -> None:
    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    def work() -> None:
        Dropping()
        time.sleep(5)

    with stop_on_signals(), pytest.raises(Stopped):
        work()


def test_a_signal_after_the_last_step_is_not_lost() -> None:
    with pytest.raises(Stopped), stop_on_signals(), catch_signals():
        os.kill(os.getpid(), signal.SIGTERM)


def test_without_sighup_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no SIGHUP."""
    with monkeypatch.context() as patch:
        patch.delattr(signal, "SIGHUP")
        found = runpy.run_path(signals.__file__)["STOPS"]
    assert found == (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_imports_of_the_command_line(number: int) -> None:
    code = f"""
import os, sys
class Signal:
    def find_spec(self, name, *others):
        if name == "fsmerge_cli.cli":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signal())
from fsmerge_cli.__main__ import main
sys.exit(main())
"""
    ran = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, cwd=REPOSITORY)
    assert (ran.returncode, ran.stdout) == (128 + number, "")
    name = signal.Signals(number).name
    assert ran.stderr == f"fsmerge: interrupted by {name}. Run the same command again.\n"
