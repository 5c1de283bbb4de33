"""How the core tells its caller what it is doing: one callback, no printing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """One step of a phase: `done` of `total` (0: unknown), with values worth showing (loss, ...).

    images: how many images one unit of `done` stands for (0: none), so that a rate can be told. A phase whose
    `done` falls has begun again. Something to be noted is a phase of its own: 1 of 1.
    """

    phase: str
    done: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)
    images: int = 0


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The default: says nothing."""
