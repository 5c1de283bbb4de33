"""How a user stops a training: between two steps, with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Asked:
    """Whether somebody asked the run to stop; set by a signal."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def listening() -> Iterator[Asked]:
    """Inside, the first Ctrl-C (or SIGTERM) is noted, so that a step can be finished; the second stops at once."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}  # as nohup wants it

    def note(number: int, frame: object) -> None:
        asked.signal = number
        for own, handler in before.items():
            signal.signal(own, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
