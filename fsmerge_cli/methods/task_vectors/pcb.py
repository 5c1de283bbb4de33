"""PCB-Merging (Du et al., arXiv 2410.02396): parameter competition balancing within and between tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID, FiniteFloat
from fsmerge_cli.methods.task_vectors.vectors import Density, TaskVectorMethod, TaskVectors, kth_largest
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class PCB(TaskVectorMethod):
    """W' = W_0 + c sum_i b_i t_i / sum_i b_i, entry by entry, with the balance b_i of a source.

    b_i = softmax(k n(t_i t_i)) sum_j softmax(n(t_i t_j)): softmax over all entries of the network, n scales the
    products to 0..1. density: share of the entries with the largest b_i; for the others it is zero. coefficient:
    c.
    """

    name: Literal["pcb"] = "pcb"
    coefficient: FiniteFloat = 1.0
    density: Density = 0.2

    def merge(self, vectors: TaskVectors) -> Solution:
        """Four passes over the tensors: ranges, sums of the softmax, limits, merge."""
        balance = _Balance(vectors)
        size = sum(vectors.base(name).numel() for name in vectors.names)
        kept = max(1, round(self.density * size))
        k = len(vectors.problem.sources)
        limits = torch.tensor([kth_largest(balance.of_source(i), kept) for i in range(k)])

        def merged(name: str, own: Tensor) -> Tensor:
            b = balance(own)
            least = limits.to(b.device).reshape(-1, *[1] * (b.ndim - 1))
            b = torch.where(b.float() >= least, b, 0.0)
            return self.coefficient * (b * own).sum(0) / b.sum(0).clamp(min=torch.finfo(b.dtype).tiny)

        return vectors.solution(merged)


class _Balance:
    """Task vectors [k, *shape] of one tensor -> balances [k, *shape], times a common constant.

    Products of two sources are made pair by pair, so that memory does not grow with the square of their number.
    """

    def __init__(self, vectors: TaskVectors) -> None:
        self._vectors, k = vectors, len(vectors.problem.sources)
        self._least = torch.full((k, k), float("inf"), dtype=torch.float64)
        high = -self._least
        for i, j, values in self._products():
            self._least[i, j] = torch.minimum(self._least[i, j], values.min().cpu())
            high[i, j] = torch.maximum(high[i, j], values.max().cpu())
        self._span = (high - self._least).clamp(min=torch.finfo(torch.float64).tiny)
        within, between = torch.zeros(k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64)
        for i, j, values in self._products():
            between[i, j] += self._power(values, i, j).sum().cpu()
            if i == j:
                within[i] += self._power(values, i, i, k).sum().cpu()
        self._within, self._between = within.mean() / within, between.mean() / between

    def _products(self) -> Iterator[tuple[int, int, Tensor]]:
        """t_i t_j of every tensor and pair of sources."""
        for name in self._vectors.names:
            own = self._vectors.of(name)
            for i, j in product(range(len(own)), repeat=2):
                yield i, j, own[i] * own[j]

    def _power(self, values: Tensor, i: int, j: int, times: int = 1) -> Tensor:
        """exp(times n(t_i t_j))."""
        return (times * (values - float(self._least[i, j])) / float(self._span[i, j])).exp()

    def row(self, own: Tensor, i: int) -> Tensor:
        """The balance of source i, [*shape]."""
        pairs = (float(self._between[i, j]) * self._power(own[i] * own[j], i, j) for j in range(len(own)))
        within = self._power(own[i] * own[i], i, i, len(own))
        return float(self._within[i]) * within * sum(pairs, start=torch.zeros_like(own[i]))

    def __call__(self, own: Tensor) -> Tensor:
        return torch.stack([self.row(own, i) for i in range(len(own))])

    def of_source(self, source: int) -> Callable[[], Iterator[Tensor]]:
        """The balances of one source, tensor by tensor."""
        return lambda: (self.row(self._vectors.of(name), source) for name in self._vectors.names)
