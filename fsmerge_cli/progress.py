"""How the core tells its caller what it is doing: one callback, no printing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """One step of a phase: `done` of `total` (0: unknown), with values worth showing (loss, ...)."""

    phase: str
    done: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The default: says nothing."""
