"""DELLA-Merging (Deep et al., arXiv 2406.11617): small entries are dropped more often than large ones."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, Share
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, elected, ranks, rows
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class Della(Scaled):
    """W' = W_0 + c m: m is the mean of the pruned task vectors that have the elected sign, entry by entry.

    An entry is dropped with probability p_j = p - e/2 + e r_j / n, by its rank r_j among the n entries of its row
    (0: largest magnitude), and divided by 1 - p_j where it is kept. drop: p, the mean probability. spread: e, the
    difference between the smallest and the largest entry. The paper searches both and the coefficient.
    """

    name: Literal["della"] = "della"
    drop: Share = 0.7
    spread: Share = 0.2

    def check(self, problem: Problem) -> None:
        """Raise ConfigError where a probability would leave 0..1, or widths differ."""
        super().check(problem)
        if not self.spread / 2 <= self.drop < 1 - self.spread / 2:
            raise ConfigError(
                f"method.drop={self.drop} with method.spread={self.spread}: the probabilities of dropping "
                "an entry would leave 0..1. Give a smaller method.spread."
            )

    def merge(self, vectors: TaskVectors) -> Solution:
        """Drop, rescale, elect, merge."""
        shares = self.shares(vectors)
        return vectors.solution(
            lambda name, own: self.coefficient * elected(self._pruned(vectors, name, own), shares)
        )

    def _pruned(self, vectors: TaskVectors, name: str, own: Tensor) -> Tensor:
        pruned = []
        for task, vector in zip(vectors.problem.plan.tasks, own):
            drop = self.probabilities(vector)
            random = torch.rand(vector.shape, generator=generator(vectors.problem.seed, "della", task, name))
            pruned.append(torch.where(random.to(drop) >= drop, vector / (1 - drop), 0.0))
        return torch.stack(pruned)

    def probabilities(self, vector: Tensor) -> Tensor:
        """The probability with which every entry of one task vector is dropped."""
        matrix = rows(vector.abs())
        count = matrix.shape[1]
        rank = count - 1 - ranks(matrix)
        return (self.drop - self.spread / 2 + self.spread * rank.to(vector) / count).reshape(vector.shape)
