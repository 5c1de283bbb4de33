"""The signals that stop a run, and their handlers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
"""SIGHUP does not exist on Windows, SIGBREAK only there."""


def stop_handlers() -> dict[int, Any]:
    """The present handlers of STOPS, without ignored signals; none outside the main thread, which sets them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in STOPS}
    return {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that come inside are handled at its end, so that no clean-up is cut off.

    Their handlers are replaced: a mask is of one thread, and another one may receive a signal of the process,
    whose handler then runs in the main thread all the same.
    """
    own, came, stops = stop_handlers(), list[int](), list[BaseException]()
    _set(dict.fromkeys(own, lambda number, frame: came.append(number)), stops)
    try:
        yield
    finally:
        _set(own, stops)
        for number in came:
            handler = own[number]
            if callable(handler):
                handler(number, None)
            else:
                signal.raise_signal(number)
        if stops:
            raise stops[0]


def _set(handlers: Mapping[int, Any], stops: list[BaseException]) -> None:
    """Set all handlers, whatever one that is still set raises meanwhile; that is added to `stops`."""
    left = [*handlers]
    while left:
        try:
            signal.signal(left[0], handlers[left[0]])
            del left[0]
        except BaseException as stop:  # of a signal that had come just before
            stops.append(stop)
