"""Consensus Merging with TALL masks (Wang et al., arXiv 2405.07813): only entries that several tasks use."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, FiniteFloat, NonNegativeFloat, Positive
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, weighted_sum
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class Consensus(Scaled):
    """W' = W_0 + c m s with the sum s = sum_i w_i t_i, and the mask m of the entries that enough tasks use.

    A task uses an entry (its TALL mask) where |w_i t_i| >= a |s - w_i t_i|. mask: a; the paper chooses it from
    0.2 to 0.6. tasks: how many tasks have to use an entry. Entries that one task alone uses are selfish, those
    that none uses catastrophic.
    """

    name: Literal["consensus"] = "consensus"
    coefficient: FiniteFloat = 0.4
    mask: NonNegativeFloat = 0.4
    tasks: Positive = 2

    def check(self, problem: Problem) -> None:
        """Raise ConfigError where more tasks are asked for than there are, or widths differ."""
        super().check(problem)
        if self.tasks > len(problem.sources):
            raise ConfigError(
                f"method.tasks={self.tasks}, but there are {len(problem.sources)} sources. "
                "Give a number up to that."
            )

    def merge(self, vectors: TaskVectors) -> Solution:
        """Sum, then mask."""
        shares = self.shares(vectors)

        def merged(name: str, own: Tensor) -> Tensor:
            parts = own * shares.reshape(-1, *[1] * (own.ndim - 1))
            total = weighted_sum(shares, own)
            used = (parts.abs() >= self.mask * (total - parts).abs()).sum(0)
            return self.coefficient * total * (used >= self.tasks)

        return vectors.solution(merged)
