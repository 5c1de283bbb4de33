"""The terminal: the console for all output, and the progress of a run."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fsmerge_cli.common.notes import notes_in, warnings_in
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.shown import printable, shown
from fsmerge_cli.common.streams import columns, discard
from fsmerge_cli.common.wording import Word, worded
from fsmerge_cli.reporting.phases import Phases, RunningPhases

QUIET = "FSMERGE_QUIET"
"""Set to 1 by --quiet, so that the processes of a sweep's jobs inherit it."""

NO_LIMIT, HEIGHT = 100_000, 25
"""Columns of a file or a pipe, since rich cuts or folds what is wider; lines where nothing states them."""

EVERY = 30.0
"""Seconds between two lines of one phase if there are no progress bars."""


def line(text: str) -> Text:
    """`text` on one line, without markup and control characters, for a line or a cell of a table."""
    return Text(shown(text))


def worded_table(table: Table, kind: Word) -> Table:
    """The same table, with the word for this kind of input in its title and in the names of its columns."""
    if table.title is not None:
        table.title = line(worded(str(table.title), kind))
    for column in table.columns:
        column.header = line(worded(str(column.header), kind))
    return table


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Warnings in bold, then the other notes, one per line."""
    for warning in warnings_in(notes):
        console.print(Text(f"warning: {warning}"), style="bold", soft_wrap=True)
    for note in notes_in(notes):
        console.print(Text(f"note: {note}"), soft_wrap=True)


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

    A file or a pipe has no width, so that no table is cut or folded there; COLUMNS sets one.
    No control characters if it is not a terminal, with NO_COLOR, or on a dumb terminal.
    """
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in ("dumb", "unknown")
    stream = sys.stderr if stderr else sys.stdout
    found, fixed = columns(stream), "COLUMNS" in os.environ or not stream.isatty()
    return SafeConsole(
        stderr=stderr,
        width=(found or NO_LIMIT) if fixed else None,  # None: rich follows a terminal whose size changes
        height=HEIGHT if fixed else None,
        quiet=quiet or os.environ.get(QUIET) == "1",
        force_terminal=False if plain else None,
        no_color=True if plain else None,
    )


@contextmanager
def reported(progress: Progress | bool) -> Iterator[Progress]:
    """The callback of a run: True shows its progress on standard error, as the command does, False nothing."""
    if progress is True:
        with Reporter(console(stderr=True)) as reporter:
            yield reporter
    else:
        yield progress or silent


class Reporter:
    """Shows events: on a terminal bars, then a line per finished phase; else a line every 30 s and at the end."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._phases = Phases(clock)
        self._view = RunningPhases(clock, unicode=console.encoding.startswith("utf"))
        self._live = Live(get_renderable=lambda: self._view, console=console, refresh_per_second=8)
        self._shows_bars = console.is_terminal and not console.quiet

    def __enter__(self) -> Reporter:
        if self._shows_bars:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shows_bars:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        phase, new = self._phases(event)
        now = self._phases.clock()
        last = event.done == event.total
        if last and phase.ended and not new:
            return
        phase.ended = last
        if new and last and event.total == 1:  # a note, without progress
            self._console.print(line(event.phase), soft_wrap=True)
        elif self._shows_bars:
            self._view.running[event.phase] = phase
            if last:
                del self._view.running[event.phase]
                self._console.print(line(self._view.finished(phase, now, self._console.width)), soft_wrap=True)
        elif last:
            self._print(event, phase.note(now))
        elif now - phase.printed >= EVERY:
            phase.printed = now
            left = phase.seconds_left(now)
            self._print(event, f"{phase.note(now)}  {'' if left is None else f'{left:.0f} s left'}".strip())

    def _print(self, event: Event, note: str) -> None:
        text = f"{event.phase}: {event.done}/{event.total} {note}"
        self._console.print(line(text.rstrip()), soft_wrap=True)
