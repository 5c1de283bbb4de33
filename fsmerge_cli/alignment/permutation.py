"""Permute the units of every space of a model without changing its function.

A permutation of a space is an index tensor p [n]: unit j of the new model is unit p[j] of the old one. In a
space of attention heads it permutes whole heads and the units inside a head, never units across heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fsmerge_cli.architectures.ports import Constant, Port, Unit
from fsmerge_cli.models.plan import Plan, Space

Permutations = Mapping[str, Tensor]


def permute(plan: Plan, weights: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
    """The same model with permuted units: every tensor axis that belongs to a space is indexed.

    permutations: by space; a missing space keeps its order.
    """
    permuted: dict[str, Tensor] = {}
    for name, role in plan.roles.items():
        tensor = weights[name]
        if isinstance(role, Constant):
            permuted[name] = tensor.clone()
        elif isinstance(role, Unit):
            order = permutations.get(role.port.space)
            if order is not None and role.per_head:
                order = order[: len(tensor)] % len(tensor)  # all heads of such a space share one inner order
            permuted[name] = tensor.clone() if order is None else tensor[order.to(tensor.device)]
        else:
            for axis, ports in filter(None, (role.write, role.read)):
                tensor = along(tensor, axis, ports, permutations)
            permuted[name] = tensor.clone()
    return permuted


def shares_inner_order(plan: Plan, space: str) -> bool:
    """Whether all heads of a space need the same inner order, because they share a per-head vector."""
    return any(
        isinstance(role, Unit) and role.per_head and role.port.space == space for role in plan.roles.values()
    )


def random_permutations(plan: Plan, source: int, random: torch.Generator) -> dict[str, Tensor]:
    """A random permutation of every space of one source, with heads kept whole."""
    orders: dict[str, Tensor] = {}
    permutations = {}
    for name, space in plan.spaces.items():
        if space.heads is None or space.order is None:
            permutations[name] = torch.randperm(space.sources[source], generator=random)
            continue
        heads = space.heads[1][source]
        if space.order not in orders:
            orders[space.order] = torch.randperm(heads, generator=random)
        size = space.sources[source] // heads
        inner = torch.stack([torch.randperm(size, generator=random) for _ in range(heads)])
        if space.rotary:
            inner = torch.arange(size).expand(heads, size)
        elif shares_inner_order(plan, name):
            inner = inner[:1].expand(heads, size)
        permutations[name] = blocks(orders[space.order], inner)
    return permutations


def blocks(order: Tensor, inner: Tensor) -> Tensor:
    """A permutation of heads x head size: new head h is old head order[h] with its units in the order inner[h]."""
    return (order[:, None] * inner.shape[1] + inner).reshape(-1)


def heads_of(space: Space, source: int) -> int:
    """Number of heads of a space in one source; 1 for a plain space."""
    return 1 if space.heads is None else space.heads[1][source]


def along(tensor: Tensor, axis: int, ports: tuple[Port, ...], permutations: Permutations) -> Tensor:
    """A tensor whose axis, in equal parts with a port each, is put into the order of its spaces."""
    parts = tensor.chunk(len(ports), dim=axis)
    ordered = [
        part
        if port.space not in permutations
        else part.index_select(axis, permutations[port.space].to(part.device))
        for part, port in zip(parts, ports)
    ]
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered, dim=axis)
