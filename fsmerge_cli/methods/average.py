"""Weight averaging (model soups, arXiv 2203.05482): W' = sum_i w_i W_i / k. It fails across initialisations."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class Average(Weighted, Resets):
    """W' = sum_i w_i W_i / k, of mean task weight 1; computed as the fold of the maps M_i = w_i I / k, U_i = I.

    Running statistics are averaged as well.
    """

    name: Literal["average"] = "average"

    def fit(self, problem: Problem) -> Solution:
        """The exact mean; where widths differ, units that a source lacks count as zero."""
        weights = problem.weights("cpu")  # the fold moves them, one at a time
        shares = self.weights_of_tasks(len(weights))
        maps = start_maps(problem.plan, weights, "diagonal", "average", task_weights=shares).to(problem.device)
        maps.requires_grad_(False)
        projectors = tuple(maps.projector(problem.plan, i) for i in range(len(weights)))
        solution = Solution(fold(problem.plan, maps, weights), projectors, maps=maps)
        return self.reset(problem, solution, shares)
