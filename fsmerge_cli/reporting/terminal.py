"""The terminal: the console for all output, and the progress of a run."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.text import Text

from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.shown import printable, shown
from fsmerge_cli.common.streams import discard

QUIET = "FSMERGE_QUIET"
"""Set to 1 by --quiet, so that the processes of a sweep's jobs inherit it."""

NARROWEST, WIDTH = 20, 80
"""Fewest columns that COLUMNS can set, and what is used instead of fewer: with COLUMNS=0 rich prints nothing."""

EVERY = 30.0
"""Seconds between two lines of one phase if there are no progress bars."""


def line(text: str) -> Text:
    """`text` on one line, without markup and control characters, for a line or a cell of a table."""
    return Text(shown(text))


class SafeConsole(Console):
    """A console on which names and messages of others are only text: no markup, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does, but every text is one line; progress that cannot be shown does not end a run."""
        try:
            super().print(*(line(str(o)) if isinstance(o, str | Text) else o for o in objects), **options)
        except OSError:
            if not self.stderr:
                raise
            discard(sys.stderr)

    def on_broken_pipe(self) -> None:
        """Nobody reads the output any more (`| head`): it is discarded, and the run goes on."""
        discard(sys.stderr if self.stderr else sys.stdout)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As rich does; what is no control sequence of rich itself is escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def text_of(show: Callable[[Console], None]) -> str:
    """What `show` prints on a console, as plain text."""
    file = io.StringIO()
    show(SafeConsole(file=file, width=120, force_terminal=False, no_color=True))
    return file.getvalue()


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """Standard output, or standard error; without output if `quiet` is true or --quiet was given.

    No control characters if it is not a terminal, with NO_COLOR, or on a dumb terminal.
    """
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in ("dumb", "unknown")
    columns = os.environ.get("COLUMNS", "")
    usable = not columns.isdigit() or (len(columns) < 5 and int(columns) >= NARROWEST)
    return SafeConsole(
        stderr=stderr,
        width=None if usable else WIDTH,
        quiet=quiet or os.environ.get(QUIET) == "1",
        force_terminal=False if plain else None,
        no_color=True if plain else None,
    )


@dataclass
class Phase:
    """The state of a phase: start time, first step, steps done and latest values."""

    start: float
    first: int
    done: int = 0
    printed: float = 0.0
    images: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def seconds_left(self, now: float, total: int) -> float | None:
        """Estimated from the rate so far; None before a second step."""
        steps = self.done - self.first
        return (now - self.start) / steps * (total - self.done) if steps > 0 else None

    def note(self, now: float) -> str:
        """The values, and images per second."""
        parts = [f"{name} {value:.4g}" for name, value in self.values.items()]
        steps, seconds = self.done - self.first, now - self.start
        if self.images and steps > 0 and seconds > 0:
            parts.append(f"{steps * self.images / seconds:,.0f} images/s")
        return "  ".join(parts)


class Phases:
    """Tracks the phases of a run from its events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._found: dict[str, Phase] = {}

    def __call__(self, event: Event) -> tuple[Phase, bool]:
        """The phase of an event, and whether the event starts it."""
        now = self.clock()
        phase = self._found.get(event.phase)
        new = phase is None or event.done < phase.done
        if phase is None or new:
            phase = self._found[event.phase] = Phase(now, event.done, printed=now)
        phase.done, phase.images = event.done, event.images
        phase.values |= event.values
        return phase, new


class Reporter:
    """Shows events: progress bars on a terminal, otherwise a line every 30 s and at the end of a phase."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
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
        """Show one event."""
        phase, new = self._phases(event)
        now = self._phases.clock()
        if new and event.done == event.total == 1:  # a note, without progress
            self._console.print(line(event.phase), soft_wrap=True)
        elif self._live:
            if new and event.phase in self._tasks:
                self._bars.remove_task(self._tasks.pop(event.phase))
            if new:
                task = self._bars.add_task(shown(event.phase), total=event.total, completed=event.done, note="")
                self._tasks[event.phase] = task
            self._bars.update(self._tasks[event.phase], completed=event.done, note=phase.note(now))
        elif event.done == event.total:
            self._print(event, phase.note(now))
        elif now - phase.printed >= EVERY:
            phase.printed = now
            left = phase.seconds_left(now, event.total)
            self._print(event, f"{phase.note(now)}  {'' if left is None else f'{left:.0f} s left'}".strip())

    def _print(self, event: Event, note: str) -> None:
        text = f"{event.phase}: {event.done}/{event.total} {note}"
        self._console.print(line(text.rstrip()), soft_wrap=True)
