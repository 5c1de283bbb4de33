"""CCA merging (Horoi et al., arXiv 2407.05385): units are mapped to source 1 by canonical correlation analysis."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from fsmerge_cli.alignment.canonical import head_orders, maps_of_source, takes_linear_maps
from fsmerge_cli.alignment.matching import match_all, require_images, require_one_width, similarities
from fsmerge_cli.alignment.space_maps import folded
from fsmerge_cli.alignment.statistics import correlations, covariance
from fsmerge_cli.common.options import FORBID, PositiveFloat
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network


@dataclass(frozen=True, config=FORBID)
class CCA(Weighted, Resets):
    """W' = sum_i w_i T_i W_i S_i^-1 / k, with linear maps T_i, S_i to the units of source 1 by a regularised CCA.

    T_1 = I, and T_i = C_1^1/2 R C_i^-1/2 on the activations of all images; the orthogonal R aligns the canonical
    directions. Activation functions act between T_i and its inverse, so that the map is exact only for spaces that
    are linear, and an approximation for all others (as in the paper). A space with a norm in it (the residual
    stream of a transformer) and queries and keys get the permutation of activation matching instead; values are
    mapped head by head, each to the head with the largest canonical correlations. ridge: added to the covariances,
    relative to the mean variance.
    """

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True

    name: Literal["cca"] = "cca"
    ridge: PositiveFloat = 0.1

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ or there are no images."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Match, map, average, and reset the statistics of BatchNorm."""
        self.check(problem)
        plan, k = problem.plan, len(problem.sources)
        shares = self.weights_of_tasks(k)
        networks = [network(source, problem.device) for source in problem.sources]
        batch, images = problem.hardware.eval_batch, problem.images.images
        found = correlations(plan, networks, images, batch, problem.device, problem.progress, measure=covariance)
        heads = [head_orders(plan, i, found, self.ridge) if i else {} for i in range(k)]
        orders = match_all(plan, similarities(problem, first=True), k, problem.progress, heads)
        there = {name: [torch.eye(s.merged, dtype=torch.float64)] for name, s in plan.spaces.items()}
        back = {name: list(own) for name, own in there.items()}
        for i in range(1, k):
            problem.progress(Event("map units", i - 1, k - 1))
            own, inverse = maps_of_source(plan, i, found, orders[i], self.ridge)
            for name in plan.spaces:
                there[name].append(own[name])
                back[name].append(inverse[name])
        problem.progress(Event("map units", k - 1, k - 1))
        merge = {name: [w / k * T for w, T in zip(shares, own)] for name, own in there.items()}
        mixed = sum(takes_linear_maps(plan, name) for name in plan.spaces)
        facts = {"spaces_mapped": float(mixed), "spaces_permuted": float(len(plan.spaces) - mixed)}
        solution = replace(folded(problem, merge, back), facts=facts)
        return self.reset_of_clusters(problem, solution, merge)
