"""ZipIt! (arXiv 2305.03053): merge correlated units, across and within sources; attention heads stay whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fsmerge_cli.alignment.matching import match_all, require_images, require_one_width, similarities
from fsmerge_cli.alignment.permutation import shares_inner_order
from fsmerge_cli.alignment.space_maps import merged_units
from fsmerge_cli.alignment.zipping import Zipped, within_heads, zip_units
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.models.plan import Space
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import maps_of_spaces
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import batches


@dataclass(frozen=True, config=FORBID)
class ZipIt(Resets):
    """W' = sum_i M_i W_i U_i; M averages clusters of correlated units, and U copies each mean to its units.

    Each space has one pair M, U (the residual stream is one space), from the correlations on the images of all
    tasks. a: factor of a cluster's similarities whenever it grows (0: only pairs, in effect). b: share of a
    source's merges that may be between its own units. align: which heads are merged with each other, those that
    activation matching assigns to source 1's heads (activations) or those with the same index (none); units are
    only merged within such a group of heads.
    """

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True

    name: Literal["zipit"] = "zipit"
    a: Annotated[float, Field(ge=0, le=1)] = 0.3
    b: Annotated[float, Field(ge=0, le=1)] = 0.125
    align: Literal["none", "activations"] = "activations"

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ or there are no images."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Cluster the units of every space, fold, and re-estimate running statistics."""
        self.check(problem)
        plan, weights = problem.plan, problem.weights()
        similar = similarities(problem)
        matched = self._heads(problem, similar)
        zipped = {}
        for done, (name, space) in enumerate(plan.spaces.items(), 1):
            own = None if space.heads is None else [m[name] for m in matched]
            shared = own is not None and (space.rotary or shares_inner_order(plan, name))
            zipped[name] = self._zip(similar[name], space, len(weights), own, shared)
            problem.progress(Event("zip units", done, len(plan.spaces)))
        merge = {name: pair[0] for name, pair in zipped.items()}
        unmerge = {name: pair[1] for name, pair in zipped.items()}
        units = merged_units(plan, weights, merge)
        maps = maps_of_spaces(plan, merge, unmerge, units).to(problem.device)
        folded = reestimated(problem, fold(plan, maps, weights))
        units = {
            name: folded[name] for name in units
        }  # so that the maps fold to the weights with the new statistics
        maps = maps_of_spaces(plan, merge, unmerge, units).to(problem.device)
        projectors = tuple(plan.projector([U]).float().to(problem.device) for U in unmerge[plan.features.space])
        solution = Solution(folded, projectors, maps=maps)
        return self.reset_of_clusters(problem, solution, merge)

    def _heads(self, problem: Problem, similar: Mapping[str, Tensor]) -> Sequence[Mapping[str, Tensor]]:
        """For each source and space, the order of units that matches source 1's heads."""
        plan, k = problem.plan, len(problem.sources)
        if self.align == "none":
            return [{name: torch.arange(space.merged) for name, space in plan.spaces.items()}] * k
        return match_all(plan, similar, k, problem.progress)

    def _zip(self, similar: Tensor, space: Space, k: int, matched: list[Tensor] | None, shared: bool) -> Zipped:
        if matched is None or space.heads is None:
            return zip_units(similar, k, self.a, self.b)

        def zipped(at: Tensor) -> Zipped:
            return zip_units(similar[at][:, at], k, self.a, self.b)

        return within_heads(space.merged, space.heads[0], matched, zipped, shared)


def reestimated(problem: Problem, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with the running statistics of BatchNorm, if any, re-estimated on the images."""
    module = problem.plan.skeleton()
    module.load_state_dict({name: t.detach().clone() for name, t in weights.items()}, assign=True)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        return weights
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    images, seen = problem.images.images, 0
    with torch.no_grad():
        for rows in batches(len(images), max(2, problem.hardware.eval_batch)):
            pixels = images[rows]
            if len(pixels) > 1:  # the variance of a single row is undefined
                seen += len(pixels)
                for norm in norms:
                    norm.momentum = len(pixels) / seen  # all images have equal weight, also in a short batch
                module(pixels.to(problem.device))
    return dict(module.eval().state_dict())
