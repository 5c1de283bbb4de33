"""The terminal: one console for everything that is shown, and the progress of a run on it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fsmerge_cli.common.progress import Event

QUIET = "FSMERGE_QUIET"
"""Set to 1 by --quiet, so that the processes of a sweep's jobs know of it."""

EVERY = 30.0
"""Seconds between two lines about one phase where there is no bar."""


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """Standard output, or standard error; silent where `quiet`, or --quiet, says so.

    Without control characters where it is no terminal, with NO_COLOR, or on a dumb terminal.
    """
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in ("dumb", "unknown")
    return Console(
        stderr=stderr,
        quiet=quiet or os.environ.get(QUIET) == "1",
        force_terminal=False if plain else None,
        no_color=True if plain else None,
    )


@dataclass
class Phase:
    """What is known of a phase: since when, from where on, and its latest values."""

    start: float
    first: int
    done: int = 0
    said: float = 0.0
    images: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def seconds_left(self, now: float, total: int) -> float | None:
        """At the pace so far."""
        steps = self.done - self.first
        return (now - self.start) / steps * (total - self.done) if steps > 0 else None

    def note(self, now: float) -> str:
        """Values, and images per second."""
        parts = [f"{name} {value:.4g}" for name, value in self.values.items()]
        steps, seconds = self.done - self.first, now - self.start
        if self.images and steps > 0 and seconds > 0:
            parts.append(f"{steps * self.images / seconds:,.0f} images/s")
        return "  ".join(parts)


class Phases:
    """The phases of a run, from its events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._found: dict[str, Phase] = {}

    def __call__(self, event: Event) -> tuple[Phase, bool]:
        """The phase of an event, and whether it begins with it."""
        now = self.clock()
        phase = self._found.get(event.phase)
        new = phase is None or event.done < phase.done
        if phase is None or new:
            phase = self._found[event.phase] = Phase(now, event.done, said=now)
        phase.done, phase.images = event.done, event.images
        phase.values |= event.values
        return phase, new


class Reporter:
    """Shows events: live bars on a terminal, elsewhere a line every half minute and at the end of a phase."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._phases = Phases(clock)
        self._live = console.is_terminal and not console.quiet

    def __enter__(self) -> Reporter:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """One event of the core."""
        phase, new = self._phases(event)
        now = self._phases.clock()
        if new and event.done == event.total == 1:  # a note, which is done when it is said
            self._console.print(Text(event.phase), soft_wrap=True)
        elif self._live:
            if new and event.phase in self._tasks:
                self._bars.remove_task(self._tasks.pop(event.phase))
            if new:
                task = self._bars.add_task(event.phase, total=event.total, completed=event.done, note="")
                self._tasks[event.phase] = task
            self._bars.update(self._tasks[event.phase], completed=event.done, note=phase.note(now))
        elif event.done == event.total:
            self._say(event, phase.note(now))
        elif now - phase.said >= EVERY:
            phase.said = now
            left = phase.seconds_left(now, event.total)
            self._say(event, f"{phase.note(now)}  {'' if left is None else f'{left:.0f} s left'}".strip())

    def _say(self, event: Event, note: str) -> None:
        line = f"{event.phase}: {event.done}/{event.total} {note}"
        self._console.print(Text(line.rstrip()), soft_wrap=True)
