"""Stopping by a signal: Ctrl-C (SIGINT), SIGTERM of a batch system, SIGHUP of a closed terminal.

The command line stops at once, with a message (`stop_on_signals`). A training first finishes its step and saves
its state (`catch_signals`). A signal that is ignored when the process starts (nohup, a job in the background)
stays ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fsmerge_cli.common.errors import Interrupted, Stopped, stop_behind
from fsmerge_cli.common.signals import stop_handlers

SAME = 1.0
"""Seconds in which further signals count as the first one: terminals, shells and launchers often send several."""

CLEANING = 10.0
"""Seconds for which a run that stops may clean up before another signal cuts that off."""

SWALLOWED = 1.0
"""Seconds after which a stop is raised again where nothing handles it: some libraries catch all in an import."""

_stopping_since = float("-inf")
_parent: int | None = None


class StopRequest:
    """The signal that asked the run to stop; None before it comes."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def error(self, reached: str, saved: bool) -> Stopped:
        """The error that ends the training. reached: "step 3 of 20"; saved: whether its state was written."""
        number = self.signal or signal.SIGINT  # None: another process got the signal
        return Interrupted(reached, number) if saved else Stopped(number)


@contextmanager
def stop_on_signals(until_exit: bool = False) -> Iterator[Callable[[], None]]:
    """Inside, a signal raises Stopped, until it arrives; yields a function that ignores all further ones.

    until_exit: the process ends after the block, so the former handlers do not come back.
    """
    global _stopping_since
    _stopping_since = float("-inf")
    hook, watch = sys.unraisablehook, _Watch()

    def stop(number: int, frame: object) -> None:
        global _stopping_since
        if watch.due and stop_behind(sys.exception()) is not None:  # on its way: something is cleaned up
            watch.start(number)
            return
        if not watch.due and time.monotonic() - _stopping_since < CLEANING:
            return
        _stopping_since = time.monotonic()
        watch.start(number)
        raise Stopped(number)

    def again(lost: Any) -> None:
        """Python drops an exception that is raised inside a destructor or a callback: raise it elsewhere."""
        global _stopping_since
        if not isinstance(lost.exc_value, Stopped):
            hook(lost)
            return
        _stopping_since = float("-inf")
        timer = threading.Timer(0.01, _raise, [lost.exc_value.signal])
        timer.daemon = True
        timer.start()

    def ignore() -> None:
        watch.cancel()
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    before = _handle(stop)
    sys.unraisablehook = again
    try:
        yield ignore
    finally:
        watch.cancel()
        sys.unraisablehook = hook
        if not until_exit:
            _restore(before)


class _Watch:
    """Raises a signal again after a while. due: whether it did, and the signal was not handled since."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        self.due = False

    def start(self, number: int) -> None:
        """Raise the signal in SWALLOWED seconds."""
        self.cancel()
        self._timer = threading.Timer(SWALLOWED, self._raise, [number])
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Raise nothing any more."""
        self.due = False
        if self._timer is not None:
            self._timer.cancel()

    def _raise(self, number: int) -> None:
        self.due = True
        _raise(number)


def _raise(number: int) -> None:
    """Raise a signal in the main thread, whose waiting it cuts off; one raised in another thread does not."""
    main = threading.main_thread().ident
    if main is None or not hasattr(signal, "pthread_kill"):  # Windows
        signal.raise_signal(number)
    else:
        signal.pthread_kill(main, number)


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Inside, the first signal is recorded, so that the step can finish; one that comes later stops at once."""
    stop, first = StopRequest(), 0.0

    def record(number: int, frame: object) -> None:
        nonlocal first
        if stop.signal is None:
            stop.signal, first = number, time.monotonic()
        elif time.monotonic() - first >= SAME:
            stop.signal = None
            _restore(before)
            signal.raise_signal(number)

    before = _handle(record)
    try:
        yield stop
    except BaseException:
        global _stopping_since
        if stop.signal is not None:
            _stopping_since = time.monotonic()
        _restore(before)
        raise
    _restore(before)
    if stop.signal is not None:  # it came after the last step had looked
        signal.raise_signal(stop.signal)


@contextmanager
def stop_with_parent() -> Iterator[None]:
    """Inside, SIGTERM comes when the process that started this one is gone; at the end this one then ends as well.

    Between two of these blocks the signal ends the process at once.
    """
    global _parent
    if _parent is None:
        _parent = os.getppid()
        threading.Thread(target=_watch, args=(_parent,), daemon=True).start()
    try:
        yield
    finally:
        if os.getppid() != _parent:
            os._exit(128 + signal.SIGTERM)  # its queue may hold more jobs, and nobody reads their results


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _handle(handler: Callable[[int, object], None]) -> dict[int, Any]:
    """Let `handler` receive all signals that stop a run; the former handlers. Only the main thread can do that."""
    before = stop_handlers()
    for number in before:
        signal.signal(number, handler)
    return before


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
