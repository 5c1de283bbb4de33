"""OT fusion (Singh & Jaggi, arXiv 1910.05653): units are moved to those of source 1 by transport and averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.matching import require_images, similarities
from fsmerge_cli.alignment.space_maps import folded
from fsmerge_cli.alignment.transport import (
    MAX_COPIES,
    copies,
    couplings,
    couplings_of_weights,
    merging,
    solver,
    unmerging,
)
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, NonNegativeFloat
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class OTFusion(Weighted, Resets):
    """W' = sum_i w_i M_i W_i U_i / k, with M_i = diag(n') T_i and U_i = diag(n_i) T_i^T of a transport plan T_i.

    T_i [n', n_i] moves the units of source i to those of source 1 at the least cost. Sources may be wider or
    narrower than source 1, whose shape the merged model has. (The paper has n' in U_i as well, which is the same
    for equal widths; with n_i the values that a unit reads keep their size.) One plan per space: the residual
    stream has one for all depths. Heads are transported as wholes.

    cost: distance of two units, of their standardised activations on all images, or of the weights that write
    them. regularization: 0 is exact, which for equal widths is a permutation (with cost=activations that of
    activation_matching, up to its distances); above it is the weight of the entropy relative to the largest cost
    (Sinkhorn), and M averages similar units; heads are transported exactly.
    """

    uses_images: ClassVar[bool] = True

    name: Literal["ot_fusion"] = "ot_fusion"
    cost: Literal["activations", "weights"] = "activations"
    regularization: NonNegativeFloat = 0.0

    @property
    def needs_images(self) -> bool:
        """Only the cost of activations, and `repair`."""
        return self.cost == "activations" or self.repair

    def check(self, problem: Problem) -> None:
        """Raise UserError for a merged model of another shape than source 1, or where images are missing."""
        require_shape_of_first(problem.plan, self.name)
        if not self.regularization:
            _check_exact(problem.plan)
        if self.needs_images:
            require_images(problem, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Transport, average, and reset the statistics of BatchNorm."""
        self.check(problem)
        plan, weights, k = problem.plan, problem.weights("cpu"), len(problem.sources)
        shares = self.weights_of_tasks(k)
        found = self._couplings(problem, weights)
        merge = {
            name: [shares[i] / k * merging(plan, name, own[name], i) for i, own in enumerate(found)]
            for name in plan.spaces
        }
        unmerge = {name: [unmerging(own[name]) for own in found] for name in plan.spaces}
        solution = folded(problem, merge, unmerge)
        return self.reset_of_clusters(problem, solution, merge)

    def _couplings(self, problem: Problem, weights: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """By source and space; of source 1 with itself the identity."""
        plan, k, solve = problem.plan, len(weights), solver(self.regularization)
        sizes = {name: space.merged for name, space in plan.spaces.items()}
        found = [{name: torch.eye(size, dtype=torch.float64) / size for name, size in sizes.items()}]
        similar = similarities(problem, first=True) if self.cost == "activations" else {}
        for i in range(1, k):
            problem.progress(Event("transport units", i - 1, k - 1))
            if self.cost == "activations":
                starts = {name: sum(space.sources[:i]) for name, space in plan.spaces.items()}
                parts = {n: r[:, starts[n] : starts[n] + plan.spaces[n].sources[i]] for n, r in similar.items()}
                # Two standardised vectors of correlation r have the squared distance 2 (1 - r).
                found.append(couplings(plan, {n: (2 - 2 * r).sqrt() for n, r in parts.items()}, i, solve))
            else:
                found.append(couplings_of_weights(plan, weights[0], weights[i], i, solve))
        problem.progress(Event("transport units", k - 1, k - 1))
        return found


def require_shape_of_first(plan: Plan, method: str) -> None:
    """Raise ConfigError for a merged model whose widths or heads are not source 1's."""
    widths = all(space.merged == space.sources[0] for space in plan.spaces.values())
    heads = all(space.heads[0] == space.heads[1][0] for space in plan.spaces.values() if space.heads)
    if not (widths and heads):
        raise ConfigError(
            f"method={method} moves all units to those of source 1, whose widths and heads the merged model has. "
            "Leave method.width and method.heads at null, or take method=fs_merge or method=kd."
        )


def _check_exact(plan: Plan) -> None:
    """Raise ConfigError for sizes whose exact transport is too large."""
    for space in plan.spaces.values():
        heads = (space.heads[0], *space.heads[1]) if space.heads else (1,) * (1 + len(space.sources))
        size, *others = (n // h for n, h in zip((space.merged, *space.sources), heads))
        most = max(copies(size, other) for other in others)
        if most > MAX_COPIES:
            raise ConfigError(
                f"method=ot_fusion: the exact transport in '{space.name}' between the sizes {size} and "
                f"{', '.join(str(n) for n in others if n != size)} has {most:,} parts on each side, more than "
                f"{MAX_COPIES:,}. Pass method.regularization=0.08 (Sinkhorn)."
            )
