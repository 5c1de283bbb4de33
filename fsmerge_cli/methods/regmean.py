"""RegMean (arXiv 2212.09849): each linear layer in closed form, by least squares on the sources' inputs."""

from __future__ import annotations

from abc import ABC
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fsmerge_cli.alignment.least_squares import linear_modules, mean, solve
from fsmerge_cli.alignment.matching import aligned, require_images, require_one_width
from fsmerge_cli.alignment.statistics import grams
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network


@dataclass(frozen=True, config=FORBID)
class Regression(Weighted, Resets, ABC):
    """Abstract: the options of RegMean and RegMean++.

    scale: factor of the off-diagonal entries of the Gram matrices. align: none, or activations (first permute the
    units of every source to match source 1, which the closed form needs across initialisations).
    """

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True
    mixed_images: ClassVar[str] = (
        "fits every source to images of its own task, and it is not known which these are. That "
        "costs accuracy, and more of the joint accuracy (task not given). Folders named after the tasks avoid it"
    )

    scale: Annotated[float, Field(ge=0, le=1)] = 0.9
    align: Literal["none", "activations"] = "activations"


@dataclass(frozen=True, config=FORBID)
class RegMean(Regression):
    """W' = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1 for each linear layer, with Gram matrices G_i = X_i^T X_i.

    X_i are the inputs of source i's layer on the images of task i. Biases, norms and embeddings are averaged.
    """

    name: Literal["regmean"] = "regmean"

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ or a task has no images."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)
        problem.require_task_images()

    def fit(self, problem: Problem) -> Solution:
        """Align the sources, accumulate the Gram matrices, solve layer by layer."""
        self.check(problem)
        matched = aligned(problem, self.align)
        problem = matched.problem
        weights, modules = problem.weights(), linear_modules(problem.plan)
        batch = problem.hardware.eval_batch
        stats = [
            grams(
                network(s, problem.device),
                modules,
                problem.task_images(i),
                batch,
                problem.device,
                problem.progress,
            )
            for i, s in enumerate(problem.sources)
        ]
        shares = self.weights_of_tasks(len(weights))
        merged = {name: mean(weights, name, shares) for name in weights[0]}
        worst = 0.0
        for done, module in enumerate(modules, 1):
            name = f"{module}.weight"
            own = [s[module] for s in stats]
            merged[name], condition = solve(own, [w[name] for w in weights], self.scale, shares)
            worst = max(worst, condition)
            problem.progress(Event("solve", done, len(modules)))
        facts = {"condition_number": worst}
        solution = Solution(merged, matched.back, facts=facts, permutations=matched.permutations)
        return self.reset(problem, solution, shares)
