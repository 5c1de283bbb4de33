"""Task arithmetic on task vectors pruned by magnitude, as TIES trims them (Yadav et al., arXiv 2306.01708)."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import FORBID, FiniteFloat
from fsmerge_cli.methods.task_vectors.vectors import (
    Density,
    Scaled,
    TaskVectors,
    thresholds,
    trimmed,
    weighted_sum,
)
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class Magnitude(Scaled):
    """W' = W_0 + c sum_i w_i t'_i, with the entries of largest magnitude of each task vector t_i, the others zero.

    density: share of the entries of a task vector that are kept.
    """

    name: Literal["magnitude"] = "magnitude"
    coefficient: FiniteFloat = 0.4
    density: Density = 0.2

    def merge(self, vectors: TaskVectors) -> Solution:
        """Trim, then add."""
        limits, shares = thresholds(vectors, self.density), self.shares(vectors)
        return vectors.solution(lambda name, own: self.coefficient * weighted_sum(shares, trimmed(own, limits)))
