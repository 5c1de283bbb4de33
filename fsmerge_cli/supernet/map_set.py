"""The set of all maps of one merge, stacked by kind, and its initialisation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.architectures.ports import Port, Unit
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.groups import group
from fsmerge_cli.supernet.maps import MAPS, Full, HeadBlocks, LowRank, Map, Structure

Start = Literal["first", "average", "aligned"]
Side = Literal["M", "U"]
Key = tuple[Side, Port, int]
"""Identifies one map: merge or unmerge, port, source."""


class Stack(nn.Module):
    """Maps of one structure and shape in one parameter per field, [n, ...]."""

    def __init__(self, maps: Sequence[Map]) -> None:
        super().__init__()
        self.kind, self.size = type(maps[0]), (maps[0].rows, maps[0].cols)
        for name in maps[0].tensors():
            self.register_parameter(name, nn.Parameter(torch.stack([m.tensors()[name] for m in maps])))

    def map(self) -> Map:
        """All maps of the stack as one stacked map."""
        tensors: dict[str, Any] = dict(self.named_parameters())
        return self.kind(*self.size, **tensors)


class MergeMaps(nn.Module):
    """All maps of one merge and the per-unit vectors of the merged space.

    Built by :func:`start_maps`. The parameters of this module are all that FS-Merge trains. Maps of the same
    structure and shape are in one :class:`Stack`, in the order of `stacks`.
    """

    def __init__(
        self,
        stacks: Sequence[Mapping[Key, Map]],
        units: Mapping[str, Tensor],
        trainable: frozenset[str],
    ) -> None:
        super().__init__()
        self._stacks = nn.ModuleList(Stack(list(stack.values())) for stack in stacks)
        self._places = {key: (s, i) for s, stack in enumerate(stacks) for i, key in enumerate(stack)}
        self._names = dict.fromkeys(units)
        for name, value in units.items():
            if name in trainable:
                self.register_parameter(_key(name), nn.Parameter(value))
            else:
                self.register_buffer(_key(name), value)

    def write(self, port: Port, source: int) -> Map:
        """The merge map M of `source` at `port`, [d', d_i]."""
        return self._one("M", port, source)

    def read(self, port: Port, source: int) -> Map:
        """The unmerge map U of `source` at `port`, [d_i, d']."""
        return self._one("U", port, source)

    def projector(self, plan: Plan, source: int) -> Tensor:
        """U_out of `source` as a matrix, [d_i, d']: block-diagonal where the features have parts."""
        return plan.projector([self.read(port, source).dense() for port in plan.feature_ports])

    def estimate(self, plan: Plan, features: Tensor, source: int) -> Tensor:
        """The features of `source`, from merged ones: [n, d'] -> [n, d_i]."""
        parts = features.chunk(len(plan.feature_ports), -1)
        return torch.cat([self.read(port, source)(part) for port, part in zip(plan.feature_ports, parts)], -1)

    def matrices(self, features: Collection[Port]) -> list[nn.Parameter]:
        """The parameters that are stacks of matrices, without the projectors at the ports `features`."""
        projectors = {s for (side, port, _), (s, _) in self._places.items() if side == "U" and port in features}
        stacks = [stack for s, stack in enumerate(self._stacks) if s not in projectors]
        return [p for stack in stacks for p in stack.parameters() if p.ndim > 2]

    def units(self) -> dict[str, Tensor]:
        """The per-unit vectors (norm affine, running statistics) by tensor name."""
        return {name: getattr(self, _key(name)) for name in self._names}

    def stacked(self) -> StackedMaps:
        """The stacked maps for one fold."""
        return StackedMaps([stack.map() for stack in self._stacks if isinstance(stack, Stack)], self._places)

    def _one(self, side: Side, port: Port, source: int) -> Map:
        stack, place = self._places[side, port, source]
        found = self._stacks[stack]
        if not isinstance(found, Stack):
            raise TypeError(f"stack {stack} is a {type(found).__name__}")
        return found.map().each(lambda tensor: tensor[place])


class StackedMaps:
    """Access to stacked maps by port, for one fold.

    Every stack is split only once: the gradient of a slice has the size of the whole stack, so slicing per layer
    would be expensive.
    """

    def __init__(self, stacks: Sequence[Map], places: Mapping[Key, tuple[int, int]]) -> None:
        self._stacks, self._places = stacks, places
        self._pieces: dict[tuple[int, int], list[Map]] = {}

    def select(self, side: Side, ports: Sequence[Port], source: int) -> Map:
        """The maps of `ports` as one stacked map, [len(ports), rows, cols]."""
        found = [self._places[side, port, source] for port in ports]
        stack, first = found[0]
        n = len(ports)
        whole = self._stacks[stack]
        size = len(next(iter(whole.tensors().values())))
        if found == [(stack, first + i) for i in range(n)] and first % n == 0:
            return whole if n == size else self._split(stack, n)[first // n]
        parts = [self._split(s, 1)[i].tensors() for s, i in found]
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return type(whole)(whole.rows, whole.cols, **values)

    def _split(self, stack: int, n: int) -> list[Map]:
        if (stack, n) not in self._pieces:
            whole = self._stacks[stack]
            pieces = {name: torch.split(tensor, n) for name, tensor in whole.tensors().items()}
            rows = zip(*pieces.values())
            made = [type(whole)(whole.rows, whole.cols, **dict(zip(pieces, row))) for row in rows]
            self._pieces[stack, n] = made
        return self._pieces[stack, n]


def start_maps(
    plan: Plan,
    weights: Sequence[Mapping[str, Tensor]],
    structure: Structure,
    start: Start,
    rank: int = 1,
    seed: int = 0,
    task_weights: Sequence[float] | None = None,
    unmerge: Mapping[tuple[Port, int], Tensor] | None = None,
) -> MergeMaps:
    """Initial maps and per-unit vectors.

    `first`: M = [I, 0, ...], U = [I; I; ...]; the merged model equals source 1 exactly if it has its widths and
    heads.
    `average`: M_i = w_i I / k; the merged model is the mean of the weights, weighted by `task_weights` w_i (of
    mean 1; None: all are 1).
    `aligned`: M as in `first`, and U approximates the matrices of `unmerge` (by port and source; a port without
    one starts as in `first`) within the structure. The merged model still equals source 1, but the inputs of the
    other sources' weights resemble those they were trained on.
    `rank` is the rank at the width of the features; other spaces scale it in proportion to their size.
    """
    k = len(weights)
    task_weights = task_weights or (1.0,) * k
    check_maps(plan, structure, rank)

    def make(side: Side, port: Port, source: int) -> Map:
        space = plan.spaces[port.space]
        own, merged = space.sources[source], space.merged
        rows, cols = (merged, own) if side == "M" else (own, merged)
        weight = task_weights[source] / k if start == "average" else float(source == 0)
        scale = weight if side == "M" else 1.0
        given = unmerge.get((port, source)) if unmerge and side == "U" else None
        if structure == "heads" and space.heads is not None:
            return HeadBlocks.start(merged, space.heads[0], scale)
        share = min(max(1, round(rank * merged / plan.width)), rows, cols)
        random = generator(seed, "maps", side, str(port), source)
        plain = MAPS.get(structure, LowRank)  # spaces without heads, where structure is `heads`
        if given is not None:
            return plain.near(given, share, random)
        return plain.start(rows, cols, scale, share, random)

    units = {name: role for name, role in plan.roles.items() if isinstance(role, Unit)}
    return MergeMaps(
        stacks=[{key: make(*key) for key in keys} for keys in _stacks(plan, weights)],
        units={name: _start_unit(name, role, plan, weights, task_weights, start) for name, role in units.items()},
        trainable=frozenset(name for name, role in units.items() if role.trainable),
    )


def maps_of_spaces(
    plan: Plan,
    merge: Mapping[str, Sequence[Tensor]],
    unmerge: Mapping[str, Sequence[Tensor]],
    units: Mapping[str, Tensor],
) -> MergeMaps:
    """Fixed maps, given per space instead of per port: M [d', d_i] and U [d_i, d'] per space and source."""
    sources = range(len(plan.tasks))
    return maps_of_ports(
        plan,
        {(port, i): merge[port.space][i] for port in plan.writes for i in sources},
        {(port, i): unmerge[port.space][i] for port in plan.reads for i in sources},
        units,
    )


def maps_of_ports(
    plan: Plan,
    merge: Mapping[tuple[Port, int], Tensor],
    unmerge: Mapping[tuple[Port, int], Tensor],
    units: Mapping[str, Tensor],
) -> MergeMaps:
    """Fixed maps, given by port and source: M [d', d_i] and U [d_i, d']."""
    sides: list[tuple[Side, Mapping[tuple[Port, int], Tensor]]] = [("M", merge), ("U", unmerge)]
    stacks = [{(side, port, i): Full.of(T)} for side, maps in sides for (port, i), T in maps.items()]
    return MergeMaps(stacks=stacks, units=units, trainable=frozenset()).requires_grad_(False)


def full_maps(
    plan: Plan,
    weights: Sequence[Mapping[str, Tensor]],
    merge: Mapping[tuple[Port, int], Tensor],
    unmerge: Mapping[tuple[Port, int], Tensor],
    units: Mapping[str, Tensor],
) -> MergeMaps:
    """Trainable full maps with these values, by port and source: M [d', d_i] and U [d_i, d']."""
    given: dict[Side, Mapping[tuple[Port, int], Tensor]] = {"M": merge, "U": unmerge}
    trainable = frozenset(name for name in units if isinstance(role := plan.roles[name], Unit) and role.trainable)
    stacks = [
        {(side, port, i): Full.of(given[side][port, i]) for side, port, i in keys}
        for keys in _stacks(plan, weights)
    ]
    return MergeMaps(stacks=stacks, units=units, trainable=trainable)


def _stacks(plan: Plan, weights: Sequence[Mapping[str, Tensor]]) -> list[list[Key]]:
    """The keys of every stack: the maps that one group of tensors uses, per source, in the group's order."""
    seen: set[tuple[Side, Port]] = set()
    stacks: list[list[Key]] = []
    uses: list[tuple[Side, Sequence[Port]]] = []
    for found in group(plan, weights):
        uses += [("M", found.writes), ("U", found.reads)]
    for side, ports in [*uses, ("U", plan.feature_ports)]:
        new = [port for port in dict.fromkeys(ports) if (side, port) not in seen]
        seen.update((side, port) for port in new)
        stacks += [[(side, port, i) for port in new] for i in range(len(weights)) if new]
    return stacks


def check_maps(plan: Plan, structure: Structure, rank: int) -> None:
    """Raise ConfigError for a rank above the width, and for `heads` maps of sources whose heads differ."""
    spaces = [space for space in plan.spaces.values() if space.heads]
    if structure == "heads" and any(
        {(s.merged, s.heads[0])} != set(zip(s.sources, s.heads[1])) for s in spaces if s.heads
    ):
        raise ConfigError(
            "method.maps=heads needs sources with the width and number of heads of the merged model. "
            "Take method.maps=low_rank or full."
        )
    if structure in ("low_rank", "heads") and rank > plan.width:
        raise ConfigError(
            f"method.rank={rank} is above the width of the merged model ({plan.width}). "
            f"Take a rank below it, or method.maps=full."
        )


def _start_unit(
    name: str,
    role: Unit,
    plan: Plan,
    weights: Sequence[Mapping[str, Tensor]],
    task_weights: Sequence[float],
    start: Start,
) -> Tensor:
    space = plan.spaces[role.port.space]
    size = space.merged // space.heads[0] if role.per_head and space.heads else space.merged
    used = weights if start == "average" else weights[:1]
    shares = task_weights if start == "average" else (1.0,)
    fitted = [_fitted(w[name].float(), size, role.fill) for w in used]
    return torch.stack([share * vector for share, vector in zip(shares, fitted)]).mean(0)


def _fitted(tensor: Tensor, size: int, fill: float) -> Tensor:
    """The first `size` units of a per-unit tensor, those that it lacks filled."""
    rows = [0, 0] * (tensor.ndim - 1)
    return F.pad(tensor[:size], (*rows, 0, max(0, size - len(tensor))), value=fill)


def _key(name: str) -> str:
    """A tensor name without dots, which module attributes may not contain."""
    return "unit:" + name.replace(".", "/")
