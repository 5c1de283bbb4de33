"""The fold of diagonal and low-rank maps without dense M or U.

With M = D_m + B_m A_m and U = D_u + B_u A_u:

    M W U = D_m W D_u + (M W B_u) A_u + B_m (A_m W D_u)

The first term is elementwise, the others have an inner dimension of rank: per source and element of a weight
about 8 rank multiplications forward and 12 backward, independent of the batch. Shapes: n tensors at once, each
with p equal parts along its output, rank r; `o` and `m` are output and input units, primed in the merged model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsmerge_cli.supernet.maps import Diagonal, LowRank, Map

LowRankLike = Diagonal | LowRank


def is_low_rank(maps: Sequence[Map]) -> TypeGuard[Sequence[LowRankLike]]:
    """Whether all maps are diagonal or low-rank."""
    return all(isinstance(m, LowRankLike) for m in maps)


def fold_low_rank(stacks: Sequence[Tensor], merge: Sequence[Map], unmerge: Sequence[Map]) -> Tensor:
    """sum_i M_i W_i U_i of stacks [n, p o, m], M stacked [n p, o', o], U stacked [n, m, m'] -> [n, p o', m']."""
    if not is_low_rank(merge) or not is_low_rank(unmerge):
        raise TypeError("fold_low_rank takes diagonal and low-rank maps")
    n = len(stacks[0])
    split = [W.reshape(len(M.diagonal), -1, W.shape[-1]) for W, M in zip(stacks, merge)]  # [n p, o, m]
    parts = len(split[0]) // n
    left = [M.diagonal for M in merge]
    right = [U.diagonal.repeat_interleave(parts, 0) if parts > 1 else U.diagonal for U in unmerge]
    folded = scaled_sum(split, left, right, (merge[0].rows, unmerge[0].cols))  # [n p, o', m']
    reads, writes = [], []
    for W, part, M, U in zip(stacks, split, merge, unmerge):
        if isinstance(U, LowRank):
            inner = M.left((W @ U.B).reshape(len(part), part.shape[1], -1))  # M W B_u, [n p, o', r]
            reads.append((inner, U.A))
        if isinstance(M, LowRank):
            writes.append((M.B, _wide(U, parts).right(M.A @ part)))  # A_m W D_u, [n p, r, m']
    if parts == 1:
        reads, writes = reads + writes, []
    if writes:
        folded = torch.baddbmm(folded, *_concatenated(writes))
    folded = folded.reshape(n, -1, folded.shape[-1])
    if reads:
        tall, wide = _concatenated(reads)
        folded = torch.baddbmm(folded, tall.reshape(n, -1, tall.shape[-1]), wide)
    return folded


def scaled_sum(
    weights: Sequence[Tensor], left: Sequence[Tensor], right: Sequence[Tensor], size: tuple[int, int]
) -> Tensor:
    """sum_i diag(left_i) W_i diag(right_i) of W_i [n, o, m], left_i [n, <= o], right_i [n, <= m] -> [n, *size].

    Of tensors as large as a weight only the frozen weights themselves are saved for the backward pass.
    """
    device = weights[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else left[0].dtype
    result: Tensor = _ScaledSum.apply(size, dtype, *weights, *left, *right)
    return result


class _ScaledSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, size: tuple[int, int], dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        k = len(tensors) // 3
        total: Tensor | None = None
        for W, a, b in zip(tensors[:k], tensors[k : 2 * k], tensors[2 * k :]):
            rows, cols = a.shape[-1], b.shape[-1]
            scaled = W[:, :rows, :cols] * b[:, None]
            if total is None and (rows, cols) == size:
                total = scaled.mul_(a[..., None]) if scaled.dtype == a.dtype else scaled * a[..., None]
                continue
            if total is None:
                total = scaled.new_zeros(len(W), *size)
            total[:, :rows, :cols].addcmul_(scaled, a[..., None])
        if total is None:
            raise ValueError("no sources")
        return total.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: an activation checkpoint allows a single access
        k = len(saved) // 3
        weights, left, right = (saved[i * k : (i + 1) * k] for i in range(3))
        left_gradients, right_gradients = [], []
        for W, a, b in zip(weights, left, right):
            rows, cols = a.shape[-1], b.shape[-1]
            product = gradient[:, :rows, :cols].to(a.dtype) * W[:, :rows, :cols]
            left_gradients.append((product @ b[..., None])[..., 0])
            right_gradients.append((a[:, None] @ product)[:, 0])
        return (None, None, *[None] * k, *left_gradients, *right_gradients)


def _wide(U: LowRankLike, parts: int) -> Diagonal:
    """The diagonal of U, repeated for every part of the output."""
    diagonal = U.diagonal.repeat_interleave(parts, 0) if parts > 1 else U.diagonal
    return Diagonal(U.rows, U.cols, diagonal)


def _concatenated(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """sum_i X_i Y_i as one product of concatenated X and Y."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([x for x, _ in pairs], -1), torch.cat([y for _, y in pairs], -2)
