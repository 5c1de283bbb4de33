"""Groups of tensors that are folded in the same way: one batched product per group instead of one per layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fsmerge_cli.architectures.ports import Mapped, Port
from fsmerge_cli.models.plan import Plan


@dataclass(frozen=True)
class Group:
    """n tensors of the same shape, in different layers, whose axes belong to spaces of the same shape.

    names: of the tensors. role: of the first tensor; all have the same axes and number of parts. writes, reads:
    the ports of all tensors in order; the ports of the parts of one axis are adjacent.
    """

    names: tuple[str, ...]
    role: Mapped
    writes: tuple[Port, ...]
    reads: tuple[Port, ...]


def group(plan: Plan, weights: Sequence[Mapping[str, Tensor]], batched: bool = True) -> list[Group]:
    """The mapped tensors of `plan`, in groups; without `batched` every tensor is its own group."""
    found: dict[object, list[str]] = {}
    for name, role in plan.roles.items():
        if isinstance(role, Mapped):
            shapes = tuple(tuple(w[name].shape) for w in weights)
            layerless = re.sub(r"\d+", "*", name)  # so that the maps of a weight and of its bias are in one stack
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
