"""Task arithmetic (Ilharco et al., arXiv 2212.04089): the scaled sum of task vectors."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import FORBID, FiniteFloat
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, weighted_sum
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class TaskArithmetic(Scaled):
    """W' = W_0 + c sum_i w_i t_i, with task vectors t_i = W_i - W_0.

    coefficient: c; 1/k averages the sources. The paper chooses it on labelled images; without any, 0.4 is what
    arXiv 2306.01708 (section 6) takes.
    """

    name: Literal["task_arithmetic"] = "task_arithmetic"
    coefficient: FiniteFloat = 0.4

    def merge(self, vectors: TaskVectors) -> Solution:
        """The weighted sum."""
        shares = self.shares(vectors)
        return vectors.solution(lambda name, own: self.coefficient * weighted_sum(shares, own))
