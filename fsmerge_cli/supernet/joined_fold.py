"""Folds for a GPU: all sources at once, with a k-th of the kernels of `low_rank_fold` and no pass for the sum.

For diagonal and low-rank maps and sources of equal shapes. `fold_low_rank` computes the same and is the reference;
here the sources are one tensor W [n p, k, o, m], and one product adds both low-rank terms of all of them. The
letters are those of `low_rank_fold`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from fsmerge_cli.supernet.groups import Group
from fsmerge_cli.supernet.low_rank_fold import LowRankLike, is_low_rank, scaled_sum
from fsmerge_cli.supernet.map_set import StackedMaps
from fsmerge_cli.supernet.maps import Diagonal, Full, LowRank, Map

ALIGNED = 8
"""Elements in 16 bytes of bf16, the length of which rows have to be a multiple for tensor cores."""


@dataclass(frozen=True)
class Joined:
    """The tensors of one kind of all sources, W [n p, k, o, m]; group: their names and ports."""

    group: Group
    sources: Tensor

    @property
    def parts(self) -> int:
        """Parts of the output of every tensor."""
        return len(self.sources) // len(self.group.names)

    def maps(self, stacked: StackedMaps) -> tuple[LowRankLike, LowRankLike]:
        """M and U of all sources, [n p, k, ...]."""
        k = self.sources.shape[1]
        merge = [stacked.select("M", self.group.writes, i) for i in range(k)]
        unmerge = [stacked.select("U", self.group.reads, i) for i in range(k)]
        return _together(merge, 1), _together(unmerge, self.parts)


def join(group: Group, stacks: Sequence[Tensor], stacked: StackedMaps) -> Joined | None:
    """The tensors [n, p o, m] of all sources as one; None where their shapes or maps need a fold by source."""
    k = len(stacks)
    if not group.role.read or (group.role.write[0], group.role.read[0]) != (0, 1):
        return None
    if stacks[0].ndim != 3 or any(W.shape != stacks[0].shape for W in stacks):
        return None
    for side, ports in (("M", group.writes), ("U", group.reads)):
        maps = [stacked.select(side, ports, i) for i in range(k)]  # type: ignore[arg-type]
        if not is_low_rank(maps) or any(_kind(one) != _kind(maps[0]) for one in maps):
            return None
    parts = len(group.writes) // len(group.names)
    return Joined(group, torch.stack([W.reshape(len(W) * parts, -1, W.shape[2]) for W in stacks], 1))


def _kind(one: Map) -> object:
    return type(one), one.rows, one.cols, [t.shape for t in one.tensors().values()]


def _together(maps: Sequence[Map], repeats: int) -> LowRankLike:
    """The maps [n, ...] of all sources as one [n repeats, k, ...]."""
    first = maps[0]
    if not isinstance(first, LowRankLike):
        raise TypeError("joined folds take diagonal and low-rank maps")
    values: dict[str, Any] = {
        name: torch.stack([one.tensors()[name] for one in maps], 1).repeat_interleave(repeats, 0)
        for name in first.tensors()
    }
    return replace(first, **values)


def fold_joined(
    sources: Sequence[Tensor],
    merge: Sequence[LowRankLike],
    unmerge: Sequence[LowRankLike],
    scaled: Callable[..., Tensor] | None = None,
) -> list[Tensor]:
    """sum_i M_i W_i U_i of every W [n p, k, o, m], M [n p, k, o', o], U [n p, k, m, m'] -> [n p, o', m'].

    scaled: the elementwise part; None: `scaled_sum`, which saves nothing as large as a weight.
    """
    return [_fold(W, M, U, scaled or _scaled) for W, M, U in zip(sources, merge, unmerge)]


def fold_joined_fused(
    sources: Sequence[Tensor], merge: Sequence[LowRankLike], unmerge: Sequence[LowRankLike]
) -> list[Tensor]:
    """`fold_joined` in elementwise operations that torch.compile fuses, forward and backward."""
    return fold_joined(sources, merge, unmerge, _scaled_plainly)


def _fold(W: Tensor, M: LowRankLike, U: LowRankLike, scaled: Callable[..., Tensor]) -> Tensor:
    folded = scaled(W, M.diagonal, U.diagonal, (M.rows, U.cols))
    M, U = _aligned(M), _aligned(U)
    tall, wide = [], []
    if isinstance(U, LowRank):
        tall.append(M.left(W @ U.B))  # M W B_u, [n p, k, o', r]
        wide.append(U.A)
    if isinstance(M, LowRank):
        tall.append(M.B)
        wide.append(Diagonal(U.rows, U.cols, U.diagonal).right(M.A @ W))  # A_m W D_u, [n p, k, r, m']
    if not tall:
        return folded
    left = torch.cat(tall, -1) if len(tall) > 1 else tall[0]
    right = torch.cat(wide, -2) if len(wide) > 1 else wide[0]
    return torch.baddbmm(folded, left.transpose(1, 2).flatten(2), right.flatten(1, 2))


def _aligned(one: LowRankLike) -> LowRankLike:
    """The same map with a rank that fills rows of 16 bytes in bf16, by zeros."""
    missing = -one.A.shape[-2] % ALIGNED if isinstance(one, LowRank) and _autocast(one.A) else 0
    if not missing or not isinstance(one, LowRank):
        return one
    return replace(one, A=F.pad(one.A, (0, 0, 0, missing)), B=F.pad(one.B, (0, missing)))


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def _scaled(W: Tensor, left: Tensor, right: Tensor, size: tuple[int, int]) -> Tensor:
    return scaled_sum(W.unbind(1), left.unbind(1), right.unbind(1), size)


def _scaled_plainly(W: Tensor, left: Tensor, right: Tensor, size: tuple[int, int]) -> Tensor:
    rows, cols = left.shape[-1], right.shape[-1]
    total = (left[..., None] * W[:, :, :rows, :cols] * right[:, :, None]).sum(1)
    if (rows, cols) != size:
        total = F.pad(total, (0, size[1] - cols, 0, size[0] - rows))
    return total.to(torch.get_autocast_dtype(W.device.type)) if _autocast(W) else total


def is_full(maps: Sequence[Map]) -> TypeGuard[Sequence[Full]]:
    """Whether all maps are any matrices."""
    return all(isinstance(m, Full) for m in maps)


def fold_full(stacks: Sequence[Tensor], merge: Sequence[Map], unmerge: Sequence[Map]) -> Tensor:
    """sum_i M_i W_i U_i of stacks [n, p o, m], summed inside the products instead of in passes of their own."""
    if not is_full(merge) or not is_full(unmerge):
        raise TypeError("fold_full takes full maps")
    total: Tensor | None = None
    for W, M, U in zip(stacks, merge, unmerge):
        read = (W @ U.matrix).reshape(len(M.matrix), -1, U.cols)  # [n p, o, m']
        total = M.matrix @ read if total is None else torch.baddbmm(total, M.matrix, read)
    if total is None:
        raise ValueError("no sources")
    return total.reshape(len(stacks[0]), -1, total.shape[-1])
