"""FS-Merge in closed form: the merged network by least squares, without a gradient step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from fsmerge_cli.alignment.closed_form.layered import layers
from fsmerge_cli.alignment.closed_form.options import ClosedFormOptions
from fsmerge_cli.alignment.closed_form.outline import outline
from fsmerge_cli.alignment.closed_form.solve import ClosedForm, closed_form
from fsmerge_cli.alignment.matching import require_images
from fsmerge_cli.architectures.ports import Unit
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, Count, Flag, NonNegativeFloat
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.images.augment import Augment
from fsmerge_cli.methods.base import Method
from fsmerge_cli.models.head_count import HeadCount
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import MergeMaps, maps_of_ports
from fsmerge_cli.training.batches import ViewOptions
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class FSClosedForm(Method):
    """All sources side by side, pruned to the merged width by least squares, from the first layer to the last.

    width: of the merged model, from one source's to the sum of all. heads: all (every head of every source, at a
    smaller size), a number, or same (as many as source 1 has); heads beyond that number are left out whole. views:
    augmented copies of every image as further rows (null: so many that there are IMAGES_PER_TASK images per task).
    augment: none, shift, paper or strong. ridge: of every regression, relative to the mean variance of its
    inputs (null: chosen by cross-validation over the images).
    correct: every layer that writes into the residual stream is fitted to what is missing there; without it all
    weights are of the form sum_i M_i W_i U_i. row_weights: tokens count by how much the features depend on them.
    """

    uses_images: ClassVar[bool] = True

    name: Literal["fs_closed_form"] = "fs_closed_form"
    heads: HeadCount | None = "all"
    views: Count | None = None
    augment: Augment = "strong"
    ridge: NonNegativeFloat | None = None
    correct: Flag = True
    row_weights: Flag = True

    def check(self, problem: Problem) -> None:
        """Raise UserError without images, for too large a width, or an architecture of another kind."""
        require_images(problem, self.name)
        require_enough_units(problem.plan)
        if outline(problem.plan) is None and layers(problem.plan) is None:
            raise ConfigError(
                "method=fs_closed_form does not know the order of computation of family "
                f"'{problem.plan.family.name}': it is neither blocks on a residual stream nor a chain of layers. "
                "Take method=fs_merge or method=kd."
            )

    def fit(self, problem: Problem) -> Solution:
        """Solve layer by layer."""
        self.check(problem)
        options = ClosedFormOptions(
            self.ridge, self.correct, self.row_weights, problem.hardware.eval_batch, problem.seed
        )
        found = closed_form(problem, self.rows(problem), options)
        if self.correct:
            return Solution(found.weights, found.projectors, facts=figures(found))
        maps = as_maps(problem.plan, found)
        weights = {name: t.detach() for name, t in fold(problem.plan, maps, problem.weights()).items()}
        return Solution(weights, found.projectors, maps=maps, facts=figures(found))

    def rows(self, problem: Problem) -> Images:
        """All images and their augmented copies; the images of `problem` come first."""
        images = problem.images
        tasks = max(1, len(problem.sources))
        wanted = math.ceil(IMAGES_PER_TASK * tasks / len(images)) - 1
        views = max(0, wanted) if self.views is None else self.views
        if views == 0:
            return images
        everything = replace(images, train=torch.arange(len(images)))
        return ViewOptions(self.augment, views).copies(everything, problem.seed)


IMAGES_PER_TASK = 500
"""Images per task that `views: null` fills up to with augmented copies."""


def require_enough_units(plan: Plan) -> None:
    """Raise ConfigError where a space of the merged model has more units than those of all sources together."""
    for space in plan.spaces.values():
        if space.merged > sum(space.sources):
            raise ConfigError(
                f"method.width: the merged model has {space.merged} units in '{space.name}', but all sources "
                f"together have {sum(space.sources)}. Give at most the sum of the sources' widths."
            )


def as_maps(plan: Plan, found: ClosedForm) -> MergeMaps:
    """The maps of a solution without corrections."""
    units = {name: found.weights[name] for name, role in plan.roles.items() if isinstance(role, Unit)}
    read = {**found.unmerge, **{(plan.features, i): U for i, U in enumerate(found.projectors)}}
    return maps_of_ports(plan, found.merge, read, units)


def figures(found: ClosedForm) -> dict[str, float]:
    """What to report of a solution: by layer where there are several, and by source."""
    values: dict[str, float] = {}
    for name, by_layer in found.facts.items():
        for place, layer in enumerate(by_layer):
            key = name if len(by_layer) == 1 else f"{name}_{place}"
            if name == "logits_kept":
                values[key] = min(layer)
            else:
                suffixes = [""] if len(layer) == 1 else [f"_source_{i + 1}" for i in range(len(layer))]
                values |= {f"{key}{suffix}": value for suffix, value in zip(suffixes, layer)}
    return values
