"""Optimal transport between the units of source 1 and those of another source; attention heads stay whole.

A coupling T [n, m] says how much of unit j of the other source goes to unit i of source 1; its rows sum to 1/n and
its columns to 1/m. With equal sizes an exact one is a permutation divided by n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fsmerge_cli.alignment.permutation import shares_inner_order
from fsmerge_cli.architectures.ports import Mapped, Port
from fsmerge_cli.models.plan import Plan, Space

MAX_COPIES = 8192
"""Largest least common multiple of two sizes for which the coupling is solved exactly (0.5 GB of costs)."""

MAX_STEPS, TOLERANCE = 2000, 1e-9
"""Most steps of Sinkhorn's algorithm, and the error of the columns' sums, relative to them, that ends it."""

Solve = Callable[[Tensor], Tensor]
"""Costs [n, m], at most 1 -> coupling [n, m]."""


def solver(regularization: float) -> Solve:
    """The exact solver for 0, else Sinkhorn's algorithm."""
    return partial(sinkhorn, regularization=regularization) if regularization else exact


def copies(n: int, m: int) -> int:
    """Parts into which the mass is cut, so that all units of both sides have a whole number of them."""
    return math.lcm(n, m)


def exact(cost: Tensor) -> Tensor:
    """The coupling with the least sum of T * cost; cost: [n, m].

    The transport problem with equal masses is an assignment of parts, of which every unit has lcm(n, m) / n.
    """
    n, m = cost.shape
    parts = copies(n, m)
    rows, columns = parts // n, parts // m
    repeated = cost.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    one, two = map(torch.from_numpy, linear_sum_assignment(repeated.cpu().numpy()))
    found = torch.zeros(n, m, dtype=torch.float64)
    return found.index_put_((one // rows, two // columns), found.new_ones(()), accumulate=True) / parts


def sinkhorn(cost: Tensor, regularization: float) -> Tensor:
    """The coupling with the least sum of T * cost + regularization * T log T (Cuturi, arXiv 1306.0895).

    In logarithms, which small regularizations need. cost: [n, m].
    """
    n, m = cost.shape
    scores = -cost.double() / regularization
    across, down = scores.new_full((n,), -math.log(n)), scores.new_full((m,), -math.log(m))
    g = torch.zeros_like(down)
    for _ in range(MAX_STEPS):
        f = across - (scores + g).logsumexp(1)
        sums = (scores + f[:, None]).logsumexp(0) + g
        g = g + down - sums
        if float((sums - down).abs().max()) < TOLERANCE:
            break
    found: Tensor = (scores + f[:, None] + g).exp()
    return found


def coupling(plan: Plan, name: str, cost: Tensor, source: int, orders: dict[str, Tensor], solve: Solve) -> Tensor:
    """The coupling of one space with a source, [merged, d_i]; cost: likewise.

    Of heads: an inner coupling for every pair of heads, and an exact outer one of heads by the costs of the inner
    ones, because a mean of several heads' scores is no score. orders: the outer couplings by the space that leads;
    filled in here.
    """
    space, cost = plan.spaces[name], (cost / cost.max().clamp(min=1e-300)).double()
    if space.heads is None or space.order is None:
        return solve(cost)
    H, own = space.heads[0], space.heads[1][source]
    pairs = cost.reshape(H, space.merged // H, own, -1).transpose(1, 2)  # [H, H_i, d, d_i]
    size, own_size = pairs.shape[2:]
    outer = orders.get(space.order)
    if space.rotary:  # a rotation acts on fixed pairs of units
        inner = torch.eye(size, dtype=cost.dtype).expand(pairs.shape) / size
    elif shares_inner_order(plan, name):
        weights = torch.ones(H, own, dtype=cost.dtype) if outer is None else outer
        inner = solve((weights[..., None, None] * pairs).sum((0, 1)) / weights.sum()).expand(pairs.shape)
    else:
        every = [solve(pair) for pair in pairs.flatten(0, 1)]
        inner = torch.stack(every).reshape(H, own, size, own_size)
    if outer is None:
        outer = orders[space.order] = exact((inner * pairs).sum((2, 3)))
    return (outer[..., None, None] * inner).transpose(1, 2).reshape(space.merged, -1)


def merging(plan: Plan, name: str, found: Tensor, source: int) -> Tensor:
    """M [d', d_i] of a coupling T: diag(1 / row sums) T, so that a merged unit is a mean of units.

    Queries and keys of heads of another size are scaled, so that their scores keep their size.
    """
    space, scale = plan.spaces[name], 1.0
    if space.heads is not None and name not in {port.space for port in plan.reads}:
        size, own = space.merged // space.heads[0], space.sources[source] // space.heads[1][source]
        scale = math.sqrt(math.sqrt(own / size))
    return scale * found / found.sum(1, keepdim=True)


def unmerging(found: Tensor) -> Tensor:
    """U [d_i, d'] of a coupling T: diag(1 / column sums) T^T, so that a unit reads a mean of merged units."""
    return found.T / found.sum(0)[:, None]


def couplings(plan: Plan, costs: Mapping[str, Tensor], source: int, solve: Solve) -> dict[str, Tensor]:
    """The couplings of all spaces with one source, from given costs."""
    orders: dict[str, Tensor] = {}
    leading_first = sorted(costs, key=lambda name: plan.spaces[name].order != name)
    return {name: coupling(plan, name, costs[name], source, orders, solve) for name in leading_first}


def couplings_of_weights(
    plan: Plan, first: Mapping[str, Tensor], own: Mapping[str, Tensor], source: int, solve: Solve
) -> dict[str, Tensor]:
    """The couplings of all spaces with one source, from the distances of what writes their units.

    In the order of computation: the weights that write a space read spaces that are coupled already. A residual
    stream is coupled by what is written into it before anything reads it.
    """
    found: dict[str, Tensor] = {}
    orders: dict[str, Tensor] = {}
    while len(found) < len(plan.spaces):
        name = _next(plan, found)
        cost = weight_distances(plan, name, first, own, {space: unmerging(T) for space, T in found.items()})
        found[name] = coupling(plan, name, cost, source, orders, solve)
    return found


def weight_distances(
    plan: Plan, space: str, first: Mapping[str, Tensor], own: Mapping[str, Tensor], unmerge: Mapping[str, Tensor]
) -> Tensor:
    """Euclidean distances [d', d_i] between the weights that write unit i of source 1 and unit j of `own`.

    own: its weights read merged units, W U (OT fusion, equation 7). unmerge: U by space; what reads another space
    is left out.
    """
    total = torch.zeros(plan.spaces[space].merged, 0)
    for name, role in _writers(plan, space):
        if not _known(role, unmerge):
            continue
        one, two = first[name].double(), own[name].double()
        if role.read is not None:
            two = _reading(two, role.read, unmerge)
        axis, ports = role.write
        for port, a, b in zip(ports, one.chunk(len(ports), axis), two.chunk(len(ports), axis)):
            if port.space == space:
                rows, columns = _rows(a, axis), _rows(b, axis)
                squared = rows.square().sum(1)[:, None] + columns.square().sum(1) - 2 * rows @ columns.T
                total = total + squared if total.numel() else squared
    return total.clamp(min=0).sqrt()


def _next(plan: Plan, found: Mapping[str, Tensor]) -> str:
    """The first space whose writers read only coupled spaces; without one, the first with such a writer."""
    left = [s for s in plan.spaces.values() if s.name not in found and _led(s, found)]
    shares = {s.name: [_known(role, found) for _, role in _writers(plan, s.name)] for s in left}
    ready = [name for name, known in shares.items() if all(known)]
    return (ready or [name for name, known in shares.items() if any(known)])[0]


def _led(space: Space, found: Mapping[str, Tensor]) -> bool:
    return space.order in (None, space.name) or space.order in found


def _writers(plan: Plan, space: str) -> list[tuple[str, Mapped]]:
    roles = [(name, role) for name, role in plan.roles.items() if isinstance(role, Mapped)]
    return [(name, role) for name, role in roles if any(port.space == space for port in role.write[1])]


def _known(role: Mapped, found: Mapping[str, Tensor]) -> bool:
    return role.read is None or all(port.space in found for port in role.read[1])


def _reading(tensor: Tensor, read: tuple[int, tuple[Port, ...]], unmerge: Mapping[str, Tensor]) -> Tensor:
    axis, ports = read
    parts = [
        (part.movedim(axis, -1) @ unmerge[port.space]).movedim(-1, axis)
        for port, part in zip(ports, tensor.chunk(len(ports), axis))
    ]
    return torch.cat(parts, axis)


def _rows(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)
