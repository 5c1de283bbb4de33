"""DARE (Yu et al., arXiv 2311.03099): random entries of the task vectors are dropped, the others rescaled."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID, FiniteFloat, Share
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, elected, weighted_sum
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class Dare(Scaled):
    """W' = W_0 + c sum_i w_i t'_i, with t'_i = b t_i / (1 - p) for random b in {0, 1}, zero with probability p.

    drop: p. combine: sum (task arithmetic), or elect (sign election and disjoint mean, as in TIES). The random
    entries depend on the seed, the name of the task and the name of the tensor.
    """

    name: Literal["dare"] = "dare"
    coefficient: FiniteFloat = 0.4
    drop: Share = 0.9
    combine: Literal["sum", "elect"] = "sum"

    def merge(self, vectors: TaskVectors) -> Solution:
        """Drop, rescale, merge."""
        shares = self.shares(vectors)
        combine = elected if self.combine == "elect" else lambda own, weights: weighted_sum(weights, own)
        return vectors.solution(
            lambda name, own: self.coefficient * combine(self._dropped(vectors, name, own), shares)
        )

    def _dropped(self, vectors: TaskVectors, name: str, own: Tensor) -> Tensor:
        kept = [
            torch.rand(own.shape[1:], generator=generator(vectors.problem.seed, "dare", task, name)) >= self.drop
            for task in vectors.problem.plan.tasks
        ]
        return own * torch.stack(kept).to(own.device) / (1 - self.drop)
