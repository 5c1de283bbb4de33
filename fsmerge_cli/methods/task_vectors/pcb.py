"""PCB-Merging (Du et al., arXiv 2410.02396): parameter competition balancing within and between tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Task vectors [k, *shape] of one tensor -> balances [k, *shape], times a common constant."""

    def __init__(self, vectors: TaskVectors) -> None:
        self._vectors, k = vectors, len(vectors.problem.sources)
        low, high = (torch.stack(own) for own in zip(*(_range(vectors.of(name)) for name in vectors.names)))
        self._least = low.amin(0)
        self._span = (high.amax(0) - self._least).clamp(min=torch.finfo(torch.float64).tiny)
        within = torch.zeros(k, dtype=torch.float64, device=vectors.problem.device)
        between = torch.zeros(k, k, dtype=torch.float64, device=vectors.problem.device)
        for name in vectors.names:
            own, pairs = self._powers(vectors.of(name))
            within += own.flatten(1).sum(1)
            between += pairs.flatten(2).sum(2)
        self._within, self._between = within.mean() / within, between.mean() / between

    def _powers(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """exp(k n(t_i t_i)), [k, *shape], and exp(n(t_i t_j)), [k, k, *shape]."""
        least, span = (_spread(values, own) for values in (self._least, self._span))
        scaled = (own[:, None] * own[None] - least) / span
        return (len(own) * torch.stack([scaled[i, i] for i in range(len(own))])).exp(), scaled.exp()

    def __call__(self, own: Tensor) -> Tensor:
        within, pairs = self._powers(own)
        return _spread(self._within, own) * within * (_spread(self._between, own) * pairs).sum(1)

    def of_source(self, source: int) -> Callable[[], Iterator[Tensor]]:
        """The balances of one source, tensor by tensor."""
        return lambda: (self(self._vectors.of(name))[source] for name in self._vectors.names)


def _spread(values: Tensor, own: Tensor) -> Tensor:
    """Values [k] or [k, k] with axes of size 1 for those of a tensor [k, *shape] behind the first."""
    return values.reshape(*values.shape, *[1] * (own.ndim - 1))


def _range(own: Tensor) -> tuple[Tensor, Tensor]:
    flat = (own[:, None] * own[None]).flatten(2)
    return flat.amin(2), flat.amax(2)
