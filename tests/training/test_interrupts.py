"""A user stops a training: it finishes its step, saves its state and can be resumed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fsmerge_cli.common.errors import Interrupted
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.training.interrupts import catch_signals
from fsmerge_cli.training.snapshots import Snapshots
from tests.support.sources import mlp_source
from tests.training.test_snapshots import fit


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    assert str(error.value) == "interrupted at step 8 of 24"  # the signal came after step 7 was counted
    assert error.value.exit_code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    resumed = fit(make_problem, "kd", tmp_path)
    assert resumed.trace == expected.trace
    assert all(torch.equal(resumed.weights[n], t) for n, t in expected.weights.items())


def test_the_second_signal_stops_at_once() -> None:
    with catch_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGINT, before)
