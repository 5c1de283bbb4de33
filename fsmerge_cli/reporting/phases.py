"""The phases of a run, and how the running and the finished ones look on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.shown import shown

NAME, LEAST_NAME = 24, 10
"""Columns of the name of a phase; on a narrow terminal it is cut before the bar, the step or the time left."""

BAR, LEAST_BAR = 40, 8
"""Most and fewest columns of a bar."""

INDENT = "  "


@dataclass
class Phase:
    """The state of a phase: name, start time, first step, steps done, all steps (0: unknown) and latest values.

    ended: its last step was shown.
    """

    name: str
    start: float
    first: int
    total: int
    done: int = 0
    printed: float = 0.0
    ended: bool = False
    images: int = 0
    noun: str = "images"
    values: dict[str, float] = field(default_factory=dict)

    def seconds_left(self, now: float) -> float | None:
        """Estimated from the rate so far; None before a second step."""
        steps = self.done - self.first
        return (now - self.start) / steps * (self.total - self.done) if steps > 0 and self.total else None

    def parts(self, now: float) -> list[str]:
        """The values, and images per second."""
        parts = [f"{name} {value:.4g}" for name, value in self.values.items()]
        steps, seconds = self.done - self.first, now - self.start
        if self.images and steps > 0 and seconds > 0:
            parts.append(f"{steps * self.images / seconds:,.0f} {self.noun}/s")
        return parts

    def note(self, now: float) -> str:
        """The values, and images per second, on one line."""
        return "  ".join(self.parts(now))

    @property
    def steps(self) -> str:
        """Steps done of all steps."""
        return f"{self.done}/{self.total}" if self.total else f"{self.done}"


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
            phase = self._found[event.phase] = Phase(event.phase, now, event.done, event.total, printed=now)
        phase.done, phase.total = event.done, event.total
        phase.images, phase.noun = event.images, event.noun
        phase.values |= event.values
        return phase, new


class RunningPhases:
    """The phases that run now: each a line with bar, step and time left, and below it its values.

    The name gives way first on a narrow terminal, then the time so far and the bar; step and time left never do.
    """

    def __init__(self, clock: Callable[[], float], unicode: bool = True) -> None:
        self.clock = clock
        self.running: dict[str, Phase] = {}
        self._done, self._cut = ("✓", "…") if unicode else ("+", ".")
        self._spinner = Spinner("dots" if unicode else "line")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """The lines, for rich."""
        width, now = options.max_width, self.clock()
        for phase in list(self.running.values()):
            yield self._line(phase, now, width)
            for values in joined(phase.parts(now), width - len(INDENT)):
                yield Text(INDENT + values, style="dim", no_wrap=True, overflow="ellipsis")

    def _line(self, phase: Phase, now: float, width: int) -> Table:
        left, passed = phase.seconds_left(now), clock_time(now - phase.start)
        end = [phase.steps, passed, f"{clock_time(left)} left"]
        room = width - len(INDENT) - 1
        least = LEAST_NAME + 1 + LEAST_BAR
        if room - _widths(end) < least:
            del end[1]
        bar = LEAST_BAR + 1 if room - _widths(end) >= least else 0
        name = min(NAME, max(room - _widths(end) - bar, 1))
        line = Table.grid(padding=(0, 1, 0, 0))
        cells: list[Spinner | Text | ProgressBar] = [self._spinner, Text(self._name(phase, name))]
        if bar:
            size = min(BAR, room - _widths(end) - name - 1)
            total = phase.total or None
            cells.append(ProgressBar(total, phase.done, width=size, pulse=total is None, animation_time=now))
        line.add_row(*cells, *(Text(text, no_wrap=True) for text in end))
        return line

    def finished(self, phase: Phase, now: float, width: int) -> str:
        """One line for a phase that ended; values that do not fit are left out, the last ones first."""
        end = f"{phase.steps} {clock_time(now - phase.start)}"
        name = min(NAME, max(width - cell_len(end) - 2 * len(INDENT), 1))
        text = f"{self._done} {self._name(phase, name)} {end}"
        return joined([text, *phase.parts(now)], width)[0]

    def _name(self, phase: Phase, width: int) -> str:
        """The name of a phase in exactly `width` columns."""
        name = shown(phase.name)
        return (
            set_cell_size(name, width) if cell_len(name) <= width else set_cell_size(name, width - 1) + self._cut
        )


def joined(parts: Sequence[str], width: int) -> list[str]:
    """The parts on lines of `width` columns; none is broken unless it alone is wider than a line.

    >>> joined(["loss 0.5", "lr 1e-05", "8 images/s"], 20)
    ['loss 0.5  lr 1e-05', '8 images/s']
    """
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + 2 + cell_len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def clock_time(seconds: float | None) -> str:
    """As h:mm:ss, or m:ss below an hour.

    >>> clock_time(7384), clock_time(65), clock_time(None)
    ('2:03:04', '1:05', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _widths(texts: Sequence[str]) -> int:
    """Columns of the texts, with a space before each."""
    return sum(cell_len(text) + 1 for text in texts)
