"""Signals that stop a run: held back during a clean-up."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from typing import Any

import pytest

from fsmerge_cli.common.errors import Stopped
from fsmerge_cli.common.signals import STOPS, undisturbed


@pytest.mark.parametrize("handler", [signal.SIG_DFL, "raises"])
def test_signals_during_a_clean_up_are_handled_once_at_its_end(
    handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with no handler of Python; afterwards all signals have the handlers from before."""
    done: list[object] = []

    def stop(number: int, frame: object) -> None:
        done.append(number)
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop if handler == "raises" else handler)
    monkeypatch.setattr(signal, "raise_signal", done.append)
    handlers = {number: signal.getsignal(number) for number in STOPS}
    try:
        with suppress(Stopped), undisturbed():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            done.append("cleaned")
        assert done == ["cleaned", signal.SIGTERM]
        assert {number: signal.getsignal(number) for number in STOPS} == handlers
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_raises_while_handlers_are_exchanged_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = {number: signal.getsignal(number) for number in STOPS}
    real, calls = signal.signal, [0]

    def late(number: int, handler: Any) -> Any:
        calls[0] += 1
        if calls[0] in {2, len(handlers) + 3}:  # in the middle of setting them, and of setting them back
            raise Stopped(signal.SIGTERM)
        return real(number, handler)

    monkeypatch.setattr(signal, "signal", late)
    with pytest.raises(Stopped), undisturbed():
        pass
    assert calls[0] == 2 * len(handlers) + 2
    assert {number: signal.getsignal(number) for number in STOPS} == handlers
