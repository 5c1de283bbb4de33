"""A user stops a training: it finishes its step, saves its state and can be resumed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fsmerge_cli.common.errors import Interrupted, Stopped
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.training import interrupts
from fsmerge_cli.training.interrupts import catch_signals, stop_on_signals
from fsmerge_cli.training.snapshots import Snapshot, Snapshots
from tests.support.sources import mlp_source
from tests.training.test_snapshots import fit


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_saves_it(
    make_problem: Callable[..., Problem], tmp_path: Path, number: signal.Signals
) -> None:
    expected = fit(make_problem, "kd", None)
    problem = make_problem([mlp_source(f"s{i}", [8, 6], i) for i in range(3)], per_task=20, held=8)

    def progress(event: Event) -> None:
        if event.phase == "train" and event.done == 7:
            os.kill(os.getpid(), number)

    problem = replace(problem, progress=progress, snapshots=Snapshots(tmp_path))
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as error:
        METHODS["kd"](steps=24, batch_size=16).fit(problem)
    # The signal came after step 7 was counted.
    assert str(error.value) == f"interrupted by {number.name}; the training state is saved (step 8 of 24)"
    assert error.value.exit_code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    resumed = fit(make_problem, "kd", tmp_path)
    assert resumed.trace == expected.trace
    assert all(torch.equal(resumed.weights[n], t) for n, t in expected.weights.items())


def test_the_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with catch_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # within a second: the same one
        assert stop.signal == signal.SIGINT
        monkeypatch.setattr(interrupts, "SAME", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("caught", [BaseException, KeyboardInterrupt])
def test_a_stop_that_a_library_swallows_is_raised_again(
    monkeypatch: pytest.MonkeyPatch, caught: type[BaseException]
) -> None:
    """torch and others have an `except:` around parts of their imports; the run went on."""
    monkeypatch.setattr(interrupts, "SWALLOWED", 0.05)
    swallowed = []

    def import_library() -> None:
        with stop_on_signals():
            for wait in (lambda: signal.raise_signal(signal.SIGTERM), lambda: time.sleep(10)):
                try:
                    wait()
                except caught as stop:
                    swallowed.append(stop)
                    time.sleep(0.2)  # what it does instead is not interrupted
            time.sleep(10)

    began = time.monotonic()
    with pytest.raises(Stopped) as error:
        import_library()
    assert len(swallowed) == 2
    assert error.value.signal == signal.SIGTERM
    assert time.monotonic() - began < 9  # no wait of ten seconds was waited for


def test_a_stop_on_its_way_is_not_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "SWALLOWED", 0.02)
    cleaned = []

    def run() -> None:
        with stop_on_signals(), ExitStack() as stack:
            stack.callback(lambda: cleaned.append("files"))
            stack.callback(time.sleep, 0.2)
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                time.sleep(0.2)
                cleaned.append("state")

    with pytest.raises(Stopped):
        run()
    assert cleaned == ["state", "files"]
    time.sleep(0.1)  # nothing comes after the block


@pytest.mark.full
def test_a_state_that_could_not_be_saved_is_not_offered(
    make_problem: Callable[..., Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem([mlp_source(f"s{i}", [8, 6], i) for i in range(2)], per_task=20)
    monkeypatch.setattr(Snapshot, "save", lambda *args: False)  # the disk is full

    def progress(event: Event) -> None:
        if event.phase == "train" and event.done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    problem = replace(problem, progress=progress, snapshots=Snapshots(tmp_path))
    with pytest.raises(Stopped) as error:
        METHODS["kd"](steps=24, batch_size=16).fit(problem)
    assert str(error.value) == "interrupted by SIGTERM"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGINT, before)
