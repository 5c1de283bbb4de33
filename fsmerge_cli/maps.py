"""Maps between feature spaces, and the set of all maps of one merge.

A map is a matrix T [rows, cols] from a space of size cols to one of size rows, in one of several structures.
A merge map M_i is [d', d_i], an unmerge map U_i is [d_i, d'] (FS-Merge, arXiv 2410.01483, section 4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.errors import ConfigError
from fsmerge_cli.plan import Plan
from fsmerge_cli.seeding import generator
from fsmerge_cli.spaces import Port, Unit

Start = Literal["first", "average"]
Structure = Literal["diagonal", "low_rank", "full", "heads"]


class Map(nn.Module, ABC):
    """A linear map T [rows, cols]; starts as `scale` times the (rectangular) identity, exactly."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.rows, self.cols = rows, cols

    @abstractmethod
    def left(self, W: Tensor) -> Tensor:
        """T W: [cols, ...] -> [rows, ...]."""

    @abstractmethod
    def right(self, W: Tensor) -> Tensor:
        """W T: [..., rows] -> [..., cols]."""

    def forward(self, x: Tensor) -> Tensor:
        """Activations as rows, x T^T: [..., cols] -> [..., rows]."""
        return self.left(x.movedim(-1, 0)).movedim(0, -1)

    def dense(self) -> Tensor:
        """T itself, [rows, cols]; for the slow reference and for inspection."""
        parameter = next(self.parameters())
        return self.left(torch.eye(self.cols, dtype=parameter.dtype, device=parameter.device))


class Full(Map):
    """Any matrix."""

    def __init__(self, rows: int, cols: int, scale: float, rank: int, random: torch.Generator) -> None:
        super().__init__(rows, cols)
        self.matrix = nn.Parameter(scale * torch.eye(rows, cols))

    @classmethod
    def of(cls, matrix: Tensor) -> Full:
        """A fixed matrix, for methods that compute their maps instead of training them."""
        rows, cols = matrix.shape
        made = cls(rows, cols, 0.0, 1, torch.Generator())
        made.matrix = nn.Parameter(matrix.float(), requires_grad=False)
        return made

    def left(self, W: Tensor) -> Tensor:
        """T W."""
        return _product(self.matrix, W)

    def right(self, W: Tensor) -> Tensor:
        """W T."""
        return W @ self.matrix


class Diagonal(Map):
    """One number per unit: T = diag(t), rectangular where rows and cols differ."""

    def __init__(self, rows: int, cols: int, scale: float, rank: int, random: torch.Generator) -> None:
        super().__init__(rows, cols)
        self.diagonal = nn.Parameter(torch.full((min(rows, cols),), scale))

    def left(self, W: Tensor) -> Tensor:
        """T W, without ever forming T."""
        kept = W[: len(self.diagonal)] * self.diagonal.reshape(-1, *[1] * (W.ndim - 1))
        missing = self.rows - len(self.diagonal)
        return torch.cat([kept, kept.new_zeros(missing, *W.shape[1:])]) if missing else kept

    def right(self, W: Tensor) -> Tensor:
        """W T, without ever forming T."""
        kept = W[..., : len(self.diagonal)] * self.diagonal
        return F.pad(kept, (0, self.cols - len(self.diagonal)))


class LowRank(Map):
    """T = diag(t) + B A with A [rank, cols] random and B [rows, rank] zero at the start."""

    def __init__(self, rows: int, cols: int, scale: float, rank: int, random: torch.Generator) -> None:
        super().__init__(rows, cols)
        self.base = Diagonal(rows, cols, scale, rank, random)
        self.A = nn.Parameter(torch.randn(rank, cols, generator=random) / cols**0.5)
        self.B = nn.Parameter(torch.zeros(rows, rank))

    def left(self, W: Tensor) -> Tensor:
        """T W at a cost proportional to the rank."""
        return self.base.left(W) + _product(self.B, _product(self.A, W))

    def right(self, W: Tensor) -> Tensor:
        """W T at a cost proportional to the rank."""
        return self.base.right(W) + (W @ self.B) @ self.A


class HeadBlocks(Map):
    """T = (S x I_d) diag(B_1 ... B_H): one d x d block per source head, then heads are mixed by S [H, H].

    The `att_heads` structure of FS-Merge (arXiv 2410.01483); head sizes and counts are those of the source.
    """

    def __init__(self, size: int, heads: int, scale: float) -> None:
        super().__init__(size, size)
        self.heads = heads
        self.blocks = nn.Parameter(torch.eye(size // heads).repeat(heads, 1, 1))
        self.mixing = nn.Parameter(scale * torch.eye(heads))

    def left(self, W: Tensor) -> Tensor:
        """T W head by head."""
        inner = torch.bmm(self.blocks, W.reshape(self.heads, self.cols // self.heads, -1))
        return (self.mixing @ inner.flatten(1)).reshape(W.shape)

    def right(self, W: Tensor) -> Tensor:
        """W T head by head."""
        mixed = self.mixing.T @ W.reshape(-1, self.heads, self.cols // self.heads)
        return torch.bmm(mixed.transpose(0, 1), self.blocks).transpose(0, 1).reshape(W.shape)


MAPS: dict[str, type[Full] | type[Diagonal] | type[LowRank]] = {
    "diagonal": Diagonal,
    "low_rank": LowRank,
    "full": Full,
}


class MergeMaps(nn.Module):
    """All maps of one merge and the per-unit vectors of the merged space.

    Built by :func:`start_maps`; the trainable state of FS-Merge is exactly this module's parameters.
    """

    def __init__(
        self,
        writes: Mapping[Port, Sequence[Map]],
        reads: Mapping[Port, Sequence[Map]],
        units: Mapping[str, Tensor],
        trainable: frozenset[str],
    ) -> None:
        super().__init__()
        self._writes = nn.ModuleDict({str(port): nn.ModuleList(maps) for port, maps in writes.items()})
        self._reads = nn.ModuleDict({str(port): nn.ModuleList(maps) for port, maps in reads.items()})
        self._names = dict.fromkeys(units)
        for name, value in units.items():
            if name in trainable:
                self.register_parameter(_key(name), nn.Parameter(value))
            else:
                self.register_buffer(_key(name), value)

    def write(self, port: Port, source: int) -> Map:
        """The merge map M of `source` at `port`, [d', d_i]."""
        return cast(Map, cast(nn.ModuleList, self._writes[str(port)])[source])

    def read(self, port: Port, source: int) -> Map:
        """The unmerge map U of `source` at `port`, [d_i, d']."""
        return cast(Map, cast(nn.ModuleList, self._reads[str(port)])[source])

    def units(self) -> dict[str, Tensor]:
        """The per-unit vectors (norm affine, running statistics) by tensor name."""
        return {name: getattr(self, _key(name)) for name in self._names}


def start_maps(
    plan: Plan,
    weights: Sequence[Mapping[str, Tensor]],
    structure: Structure,
    start: Start,
    rank: int = 1,
    seed: int = 0,
) -> MergeMaps:
    """Maps and per-unit vectors before the first step.

    `first`: M = [I, 0, ...], U = [I; I; ...]; the merged model equals source 1 exactly where widths
    and heads are its own.
    `average`: M_i = I / k; the merged model is the mean of the weights.
    `rank` counts at the width of the features; other spaces take it in proportion to their size.
    """
    k = len(weights)
    _check_heads(plan, structure)
    if structure in ("low_rank", "heads") and rank > plan.arch.features:
        raise ConfigError(
            f"method.rank={rank} is above the width of the merged model ({plan.arch.features}). "
            f"Take a rank below it, or method.maps=full."
        )

    def make(port: Port, source: int, kind: str) -> Map:
        space = plan.spaces[port.space]
        own, merged = space.sources[source], space.merged
        rows, cols = (merged, own) if kind == "M" else (own, merged)
        weight = 1.0 / k if start == "average" else float(source == 0)
        scale = weight if kind == "M" else 1.0
        if structure == "heads" and space.heads is not None:
            return HeadBlocks(merged, space.heads[0], scale)
        share = max(1, round(rank * merged / plan.arch.features))
        random = generator(seed, "maps", kind, str(port), source)
        plain = MAPS.get(structure, LowRank)  # spaces without heads, where structure is `heads`
        return plain(rows, cols, scale, min(share, rows, cols), random)

    units = {name: role for name, role in plan.roles.items() if isinstance(role, Unit)}
    return MergeMaps(
        writes={port: [make(port, i, "M") for i in range(k)] for port in plan.writes},
        reads={port: [make(port, i, "U") for i in range(k)] for port in plan.reads},
        units={name: _start_unit(name, role, plan, weights, start) for name, role in units.items()},
        trainable=frozenset(name for name, role in units.items() if role.trainable),
    )


def _check_heads(plan: Plan, structure: Structure) -> None:
    """`heads` maps keep the sources' heads, so their number and size have to be one."""
    spaces = [space for space in plan.spaces.values() if space.heads]
    if structure == "heads" and any(
        {(s.merged, s.heads[0])} != set(zip(s.sources, s.heads[1])) for s in spaces if s.heads
    ):
        raise ConfigError(
            "method.maps=heads needs sources with one width and one number of heads, the merged model's. "
            "Take method.maps=low_rank or full."
        )


def maps_of_spaces(
    plan: Plan,
    merge: Mapping[str, Sequence[Tensor]],
    unmerge: Mapping[str, Sequence[Tensor]],
    units: Mapping[str, Tensor],
) -> MergeMaps:
    """Fixed maps that belong to spaces instead of ports: one M [d', d_i] and U [d_i, d'] per space and source."""
    return MergeMaps(
        writes={port: [Full.of(M) for M in merge[port.space]] for port in plan.writes},
        reads={port: [Full.of(U) for U in unmerge[port.space]] for port in plan.reads},
        units=units,
        trainable=frozenset(),
    )


def _start_unit(
    name: str, role: Unit, plan: Plan, weights: Sequence[Mapping[str, Tensor]], start: Start
) -> Tensor:
    space = plan.spaces[role.port.space]
    size = space.merged // space.heads[0] if role.per_head and space.heads else space.merged
    used = weights if start == "average" else weights[:1]
    fitted = [F.pad(w[name][:size].float(), (0, max(0, size - len(w[name]))), value=role.fill) for w in used]
    return torch.stack(fitted).mean(0)


def _product(T: Tensor, W: Tensor) -> Tensor:
    """T W over the first axis of W; a matrix product, which autocast knows (`tensordot` it does not)."""
    return (T @ W.reshape(len(W), -1)).reshape(len(T), *W.shape[1:])


def _key(name: str) -> str:
    """A tensor name as a name that a module accepts (no dots)."""
    return "unit:" + name.replace(".", "/")
