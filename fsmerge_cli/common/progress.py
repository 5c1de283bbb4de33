"""Progress events: the library reports to one callback and prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Progress of a phase: `done` of `total` steps (0: unknown), with values to show (loss, ...).

    images: inputs per unit of `done` (0: none), for the throughput; noun: what they are. A phase whose `done`
    decreases has restarted. A note is reported as a phase of one step.
    """

    phase: str
    done: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)
    images: int = 0
    noun: str = "images"


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore the event (the default)."""
