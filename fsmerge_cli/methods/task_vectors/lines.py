"""LiNeS (Wang et al., arXiv 2410.17146): task vectors scaled linearly with depth."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import FORBID, FiniteFloat, NonNegativeFloat
from fsmerge_cli.methods.task_vectors.depth import depths
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, weighted_sum
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class Lines(Scaled):
    """W' = W_0 + c_l sum_i w_i t_i in layer l = 0 ... L - 1, with c_l = a + b l / (L - 1).

    first: a, the coefficient of the first layer (null: 1/k, as in the paper for sums of task vectors).
    coefficient: b, what the last layer gets in addition; the paper chooses it on labelled images.
    """

    name: Literal["lines"] = "lines"
    coefficient: FiniteFloat = 0.5
    first: NonNegativeFloat | None = None

    def merge(self, vectors: TaskVectors) -> Solution:
        """Scale by depth, then add."""
        shares, depth = self.shares(vectors), depths(vectors.problem.plan)
        first = 1 / len(shares) if self.first is None else self.first
        return vectors.solution(
            lambda name, own: (first + self.coefficient * depth[name]) * weighted_sum(shares, own)
        )
