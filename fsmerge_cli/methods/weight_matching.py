"""Weight matching (Git Re-Basin, arXiv 2209.04836): permute each source to match source 1, then average."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.alignment.matching import reorder_sources, require_one_width
from fsmerge_cli.alignment.weight_matching import match_weights
from fsmerge_cli.common.options import FORBID, Positive
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class WeightMatching(Weighted, Resets):
    """W' = sum_i w_i P_i W_i Q_i^T / k, with permutations P_i, Q_i that maximise sum_l <W_1l, P_il W_il Q_il^T>.

    Found from the weights alone by coordinate descent (algorithm 1 of the paper); more than two sources are each
    matched to the mean of the others (algorithm 3). Attention heads stay whole. restarts: runs with other random
    orders, of which the best is kept.
    """

    one_width: ClassVar[bool] = True

    name: Literal["weight_matching"] = "weight_matching"
    restarts: Positive = 3

    def check(self, problem: Problem) -> None:
        """Raise ConfigError where widths differ."""
        require_one_width(problem.plan, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Match, permute, average; the projectors undo the permutation of the features."""
        self.check(problem)
        matched = reorder_sources(problem, match_weights(problem, self.restarts))
        average = Average(task_weights=self.task_weights, reset_batchnorm=self.reset_batchnorm, repair=self.repair)
        weights = average.fit(matched.problem).weights
        return Solution(weights, matched.back, permutations=matched.permutations)
