"""Activation matching (Git Re-Basin, arXiv 2209.04836): permute each source to match source 1, then average."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.alignment.matching import aligned, require_images, require_one_width
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class ActivationMatching(Weighted, Resets):
    """W' = sum_i w_i P_i W_i Q_i^T / k, with permutations P_i, Q_i that match the units of source i to source 1.

    The permutations maximise the correlation of activations and keep attention heads whole. They do not change the
    function of a source, so any loss of accuracy comes from the averaging.
    """

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True

    name: Literal["activation_matching"] = "activation_matching"

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ or there are no images."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Match, permute, average; the projectors undo the permutation of the features."""
        self.check(problem)
        matched = aligned(problem, "activations")
        average = Average(task_weights=self.task_weights, reset_batchnorm=self.reset_batchnorm, repair=self.repair)
        weights = average.fit(matched.problem).weights
        return Solution(weights, matched.back, permutations=matched.permutations)
