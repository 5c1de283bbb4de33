"""Activation matching: reorder every source's units to fit source 1, then average (Git Re-Basin family)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.alignment.matching import aligned, require_images, require_one_width
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class ActivationMatching(Weighted):
    """Permutations only, heads kept whole; exact for every source by itself, so all loss is the average's."""

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True

    name: Literal["activation_matching"] = "activation_matching"

    def fit(self, problem: Problem) -> Solution:
        """Match, reorder, average; the heads read through the permutation of the features."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)
        matched = aligned(problem, "activations")
        weights = Average(task_weights=self.task_weights).fit(matched.problem).weights
        return Solution(weights, matched.back, permutations=matched.permutations)
