"""Neuron interpolation (Luenam et al., arXiv 2507.00037): units form clusters, and layers fit their means."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.attribution import unit_importance
from fsmerge_cli.alignment.feature_projectors import projectors_of_tasks
from fsmerge_cli.alignment.k_means import cluster_maps, weighted_k_means
from fsmerge_cli.alignment.layer_fits import fitted_layers
from fsmerge_cli.alignment.matching import match_all, require_heads, require_images, require_one_width
from fsmerge_cli.alignment.permutation import shares_inner_order
from fsmerge_cli.alignment.space_maps import folded
from fsmerge_cli.alignment.statistics import correlations, covariance
from fsmerge_cli.alignment.zipping import Zipped, within_heads
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, NonNegativeFloat, Positive
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.methods.zipit import reestimated
from fsmerge_cli.models.plan import Space
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network


@dataclass(frozen=True, config=FORBID)
class NeuronInterpolation(Resets):
    """W', b' minimising |z - W' x - b'|^2 layer after layer, z_c = sum_u s_u z_u / sum_u s_u over the units of c.

    The clusters c of a space are those of the K-means of the units of all sources that is weighted by their
    importance s, on the images of all tasks; each becomes one unit. z_u is what a unit's layer gives in its
    source, x what the merged layers before it give. importance: conductance (of the logit of the predicted class,
    on the images of the source's own task) or uniform. Heads: units are merged with those of the heads that
    are assigned to each other by the correlations of their units. tries: of the K-means, from different starts.
    ridge: of every layer, relative to the mean variance of its inputs, towards sum_i M_i W_i U_i (null: by
    cross-validation over the images). The paper fits linear layers like this; blocks of transformers, which it
    trains by descent, are fitted here by
    their linear layers.
    """

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True

    name: Literal["neuron_interpolation"] = "neuron_interpolation"
    importance: Literal["conductance", "uniform"] = "conductance"
    tries: Positive = 10
    ridge: NonNegativeFloat | None = None

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ, images or heads are missing, or conductance is not defined."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)
        problem.require_task_images()
        if self.importance != "conductance":
            return
        require_heads(problem, f"{self.name} method.importance=conductance")
        if problem.plan.family.kind == "text":
            raise ConfigError(
                "method.importance=conductance follows images from black to their pixels, and texts have none. "
                "Pass method.importance=uniform."
            )

    def fit(self, problem: Problem) -> Solution:
        """Importance, clusters, then one least squares per layer."""
        self.check(problem)
        pairs = self.clustered(problem)
        merge = {name: pair[0] for name, pair in pairs.items()}
        start = folded(problem, merge, {name: pair[1] for name, pair in pairs.items()})
        averaged = {name: t.detach() for name, t in start.weights.items()}
        fitted, _ = fitted_layers(problem, merge, averaged, self.ridge, front_to_back=True)
        weights = reestimated(problem, {**averaged, **fitted})
        projectors = projectors_of_tasks(problem, weights, start.projectors, self.ridge)
        return self.reset_of_clusters(problem, Solution(weights, projectors), merge)

    def clustered(self, problem: Problem) -> dict[str, Zipped]:
        """Merge and unmerge maps of every space."""
        plan, k = problem.plan, len(problem.sources)
        weights = self.weights_of_units(problem)
        networks = [network(source, problem.device) for source in problem.sources]
        where = problem.images.images, problem.hardware.eval_batch, problem.device, problem.progress
        grams = correlations(plan, networks, *where, measure=covariance)
        heads = [name for name, space in plan.spaces.items() if space.heads is not None]
        similarity = correlations(plan, networks, *where, first=True, spaces=heads) if heads else {}
        matched, found = match_all(plan, similarity, k, problem.progress), {}
        for done, (name, space) in enumerate(plan.spaces.items(), 1):
            orders = [own[name] for own in matched] if name in heads else []
            shared = space.heads is not None and (space.rotary or shares_inner_order(plan, name))
            found[name] = self._maps(problem, space, name, grams[name], weights[name], orders, shared)
            problem.progress(Event("cluster units", done, len(plan.spaces)))
        return found

    def weights_of_units(self, problem: Problem) -> dict[str, Tensor]:
        """By space, the weights of the units of all sources, [k size]; those of a source sum to 1."""
        k = len(problem.sources)
        if self.importance == "uniform":
            return {n: torch.full((k * s.merged,), 1 / s.merged).double() for n, s in problem.plan.spaces.items()}
        own = [unit_importance(problem, i) for i in range(k)]
        return {name: torch.cat([found[name] for found in own]) for name in problem.plan.spaces}

    def _maps(
        self,
        problem: Problem,
        space: Space,
        name: str,
        gram: Tensor,
        weights: Tensor,
        orders: list[Tensor],
        shared: bool,
    ) -> Zipped:
        k, seed = len(gram) // space.merged, derive(problem.seed, "neuron_interpolation", name)

        def clustered(at: Tensor) -> Zipped:
            own, size = weights[at], len(at) // k
            member = weighted_k_means(gram[at][:, at], own, size, seed, self.tries)
            return cluster_maps(member, own, [size] * k)

        if space.heads is None:
            return clustered(torch.arange(len(gram)))
        return within_heads(space.merged, space.heads[0], orders, clustered, shared)
