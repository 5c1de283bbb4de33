"""TIES-Merging (Yadav et al., arXiv 2306.01708): trim the task vectors, elect signs, take the disjoint mean."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.task_vectors.vectors import Density, Scaled, TaskVectors, elected, thresholds, trimmed
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class Ties(Scaled):
    """W' = W_0 + c m: m is the mean, entry by entry, of the trimmed task vectors that have the elected sign.

    Trimming keeps the entries of largest magnitude of a whole task vector; the elected sign of an entry is that of
    the sum over the sources. density: share of the entries that are kept.
    """

    name: Literal["ties"] = "ties"
    density: Density = 0.2

    def merge(self, vectors: TaskVectors) -> Solution:
        """Trim, elect, merge."""
        limits, shares = thresholds(vectors, self.density), self.shares(vectors)
        return vectors.solution(lambda name, own: self.coefficient * elected(trimmed(own, limits), shares))
