"""Partial merging: matched units are averaged, and those that match worst lie side by side.

Unit j of source 1 and the units that are matched to it are a group. A merged space that is wider than a source by
n units has n members of groups as units of their own; all other members are averaged. (With two sources these are
the merged and the separate units of PLeaS, arXiv 2407.02447, section 3; with more, every member is separate or
not.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsmerge_cli.models.plan import Plan, Space

Members = list[tuple[int, int]]
"""Members of groups: source and group (unit or head of source 1)."""


def mismatches(similar: Tensor, orders: Sequence[Tensor], heads: int = 1) -> Tensor:
    """1 - the correlation of every group's member with the unit of source 1: [sources - 1, groups].

    similar: [n, k n], the units of source 1 against those of all sources. orders: unit order[j] of a source is
    matched to unit j of source 1. heads: a group consists of the units of a whole head, if there are several.
    """
    n = len(similar)
    rows = torch.arange(n)
    found = [1 - similar[rows, i * n + order] for i, order in enumerate(orders) if i > 0]
    values = torch.stack(found).double()
    return values if heads == 1 else values.reshape(len(values), heads, -1).mean(2)


def worst(mismatch: Tensor, count: int) -> Members:
    """The `count` members that match worst, in the order of groups. mismatch: [sources - 1, groups]."""
    groups = mismatch.shape[1]
    order = mismatch.flatten().argsort(descending=True, stable=True)[:count]
    return sorted(((int(at) // groups + 1, int(at) % groups) for at in order), key=lambda own: own[::-1])


def gains(mismatch: Tensor) -> Tensor:
    """The share of all mismatch that is gone with 0, 1, 2, ... separate members; 1 with all of them."""
    ordered = mismatch.flatten().clamp(min=0).sort(descending=True).values
    total = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    return total / total[-1].clamp(min=1e-300)


def partial_maps(orders: Sequence[Tensor], separate: Members, size: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """M_i [n + s, n] and U_i [n, n + s] of one space with `separate` members of groups, fp64.

    M averages the members of a group and copies separate ones; U reads every unit from where it is. size: units of
    a group, where groups are heads.
    """
    n, k = len(orders[0]), len(orders)
    alone = set(separate)
    width = n + size * len(separate)
    merge = [torch.zeros(width, n, dtype=torch.float64) for _ in range(k)]
    for i, order in enumerate(orders):
        for group in range(n // size):
            units = slice(group * size, (group + 1) * size)
            rows = torch.arange(size) + group * size
            if (i, group) in alone:
                merge[i][n + size * separate.index((i, group)) + torch.arange(size), order[units]] = 1.0
            else:
                members = sum((j, group) not in alone for j in range(k))
                merge[i][rows, order[units]] = 1.0 / members
    return merge, [(M > 0).to(M.dtype).T.contiguous() for M in merge]


def partial_merge(
    base: Plan,
    plan: Plan,
    similar: Mapping[str, Tensor],
    orders: Sequence[Mapping[str, Tensor]],
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """By space, M and U into the spaces of `plan`, which may be wider than those of `base` (source 1's)."""
    leading: dict[str, Members] = {}
    found = {}
    for name in sorted(base.spaces, key=lambda own: base.spaces[own].order != own):
        space, own = base.spaces[name], [order[name] for order in orders]
        more = plan.spaces[name].merged - space.merged
        if space.heads is None or space.order is None:
            found[name] = partial_maps(own, worst(mismatches(similar[name], own), more))
            continue
        heads = space.heads[0]
        size = space.merged // heads
        if space.order not in leading:
            leading[space.order] = worst(mismatches(similar[name], own, heads), more // size)
        found[name] = partial_maps(own, leading[space.order], size)
    return found


def mismatch_of(space: Space, similar: Tensor, orders: Sequence[Tensor]) -> Tensor:
    """The mismatches of a space, of whole heads where it consists of them."""
    return mismatches(similar, orders, space.heads[0] if space.heads else 1)
