"""Tensors that fold alike, layer after layer: one batched product per kind instead of one per layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fsmerge_cli.architectures.ports import Mapped, Port
from fsmerge_cli.models.plan import Plan


@dataclass(frozen=True)
class Group:
    """n tensors of one shape, in different layers, whose axes belong to spaces of one shape.

    names: of the tensors. role: of the first of them; axes and number of parts are those of all. writes, reads:
    the ports of all tensors in order, those of the parts of one axis side by side.
    """

    names: tuple[str, ...]
    role: Mapped
    writes: tuple[Port, ...]
    reads: tuple[Port, ...]


def group(plan: Plan, weights: Sequence[Mapping[str, Tensor]], batched: bool = True) -> list[Group]:
    """The mapped tensors of `plan`, in groups; with `batched` off every tensor is a group of its own."""
    found: dict[object, list[str]] = {}
    for name, role in plan.roles.items():
        if isinstance(role, Mapped):
            shapes = tuple(tuple(w[name].shape) for w in weights)
            layerless = re.sub(r"\d+", "*", name)  # so that the maps of a weight and of its bias lie together
            found.setdefault((layerless, shapes, *_kind(plan, role)) if batched else name, []).append(name)
    return [_group(plan, names) for names in found.values()]


def _kind(plan: Plan, role: Mapped) -> tuple[object, ...]:
    kind: list[object] = []
    for axis, ports in filter(None, (role.write, role.read)):
        spaces = [plan.spaces[port.space] for port in ports]
        kind.append((axis, tuple((s.merged, s.sources, s.heads) for s in spaces)))
    return tuple(kind)


def _group(plan: Plan, names: Sequence[str]) -> Group:
    roles = [role for name in names if isinstance(role := plan.roles[name], Mapped)]
    writes = tuple(port for role in roles for port in role.write[1])
    reads = tuple(port for role in roles if role.read for port in role.read[1])
    return Group(tuple(names), roles[0], writes, reads)
