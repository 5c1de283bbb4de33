"""The vocabulary of a specification: which feature space each axis of each tensor belongs to.

A *space* is a basis (the hidden units of layer 3); a *port* is one place where a tensor writes to or reads
from a space, written `space@place`. In the axes of a tensor the first port is written, the second is read:
a linear weight [out, in] is `("h1@fc1", "h0@fc1")`, a bias `("h1@fc1",)`, a token [1, 1, D] is
`(FIXED, FIXED, "res@embed")`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FIXED: Literal["fixed"] = "fixed"
"""An axis that belongs to no space: pixels, positions, kernel positions of a convolution."""


@dataclass(frozen=True, order=True)
class Port:
    """One place where a space is written or read."""

    space: str
    place: str

    @classmethod
    def parse(cls, text: str) -> Port:
        """Read `space@place`."""
        space, _, place = text.partition("@")
        if not space or not place:
            raise ValueError(f"a port is written space@place, got {text!r}")
        return cls(space, place)

    def __str__(self) -> str:
        return f"{self.space}@{self.place}"


@dataclass(frozen=True)
class Stack:
    """An axis of equal parts in order, each with its own port (a fused qkv, a gate and its value)."""

    ports: tuple[str, ...]


@dataclass(frozen=True)
class Norm:
    """A tensor with one entry per unit that acts within one space: affine of a norm, LayerScale, depthwise kernel.

    It is trained in the merged space. Its first axis are the units, of a kernel [C, 1, h, w] the channels.
    `fill` is the value for units that a source does not have, if widths differ. `trainable=False` marks running
    statistics, which are copied and not trained. `per_head=True` marks a vector of the size of one attention head
    that all heads of the space share (q/k norms).
    """

    port: str
    fill: float
    trainable: bool = True
    per_head: bool = False


@dataclass(frozen=True)
class HeadSpace:
    """A space that consists of attention heads (size = heads x head size).

    order: the space whose order of heads it shares (its own name if it defines the order). consumed: read by the
    attention itself rather than by a weight. rotary: its units are turned in fixed pairs by their position, so
    that they keep their places inside a head.
    """

    order: str
    consumed: bool = False
    rotary: bool = False


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the weights (a batch counter): copied from source 1."""


Axis = str | Stack
Spec = tuple[Axis, ...] | Norm | Constant


def stack(*ports: str) -> Stack:
    """A :class:`Stack` of `ports`."""
    return Stack(ports)


def norm(port: str, fill: float) -> Norm:
    """A trainable per-unit vector at `port`."""
    return Norm(port, fill)


def head_norm(port: str, fill: float) -> Norm:
    """A trainable vector of one head's size, shared by all heads of the space."""
    return Norm(port, fill, per_head=True)


def statistic(port: str, fill: float) -> Norm:
    """A per-unit running statistic at `port`."""
    return Norm(port, fill, trainable=False)


@dataclass(frozen=True)
class Mapped:
    """Compiled role of a tensor that merges through maps.

    write: (axis, ports of its equal parts); read: likewise, or None for a tensor that reads no space.
    """

    write: tuple[int, tuple[Port, ...]]
    read: tuple[int, tuple[Port, ...]] | None


@dataclass(frozen=True)
class Unit:
    """Compiled role of a per-unit tensor."""

    port: Port
    fill: float
    trainable: bool
    per_head: bool = False


Role = Mapped | Unit | Constant


def compile_role(spec: Spec) -> Role:
    """The role of one entry of a specification, with indices already filled in."""
    if isinstance(spec, Constant):
        return spec
    if isinstance(spec, Norm):
        return Unit(Port.parse(spec.port), spec.fill, spec.trainable, spec.per_head)
    mapped = [(axis, ports_of(entry)) for axis, entry in enumerate(spec) if entry != FIXED]
    if not 1 <= len(mapped) <= 2:
        raise ValueError(f"a tensor writes one space and reads at most one, got {spec!r}")
    return Mapped(mapped[0], mapped[1] if len(mapped) == 2 else None)


def ports_of(entry: Axis) -> tuple[Port, ...]:
    """The ports of the equal parts of an axis, in order."""
    texts = entry.ports if isinstance(entry, Stack) else (entry,)
    return tuple(Port.parse(text) for text in texts)
