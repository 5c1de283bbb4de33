"""Stopping a training by a signal: between two steps, with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """The signal that asked the run to stop; None before it comes."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Inside, the first Ctrl-C (or SIGTERM) is recorded, so that the step can finish; the second stops at once."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # handlers can only be set there
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A signal that is ignored (nohup) stays ignored.
    before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}

    def record(number: int, frame: object) -> None:
        stop.signal = number
        for handled, handler in before.items():
            signal.signal(handled, handler)

    for number in before:
        signal.signal(number, record)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
