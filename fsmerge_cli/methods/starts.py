"""The results of other methods as starts of trainings: their permutations, or the maps that they solve for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Literal

from torch import Tensor

from fsmerge_cli.alignment.matching import match_to_first
from fsmerge_cli.alignment.weight_matching import match_weights
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods.base import Method, Trained, Weighted
from fsmerge_cli.methods.cca import CCA
from fsmerge_cli.methods.orthogonal_matching import OrthogonalMatching
from fsmerge_cli.methods.ot_fusion import OTFusion, require_shape_of_first
from fsmerge_cli.methods.straight_through import StraightThrough
from fsmerge_cli.methods.weight_matching import WeightMatching
from fsmerge_cli.supernet.map_set import MergeMaps, full_maps
from fsmerge_cli.training.problem import Problem, Solution

TrainingStart = Literal[
    "matched",
    "weight_matching",
    "straight_through",
    "ot_fusion",
    "cca",
    "orthogonal_matching",
    "closed_form",
    "average",
    "first",
    "aligned",
]
"""What a training of weights or maps can start from."""

REORDERED = ("matched", "weight_matching", "straight_through")
"""Starts that are the mean of the sources in a new order of their units."""

MAPPED: dict[str, type[OTFusion] | type[CCA] | type[OrthogonalMatching]] = {
    "ot_fusion": OTFusion,
    "cca": CCA,
    "orthogonal_matching": OrthogonalMatching,
}
"""Starts whose units are mixed by maps; options as shipped."""

Orders = Callable[[Problem], Sequence[dict[str, Tensor]]]


def orders_of(method: Trained, start: str) -> Orders:
    """What finds the permutations of a start, by source and space.

    Straight-through estimation trains before the method does, with the method's images, views and losses.
    """
    if start == "weight_matching":
        return lambda problem: match_weights(problem, WeightMatching().restarts)
    if start == "straight_through":
        return lambda problem: straight_through(method).permutations(problem)[0]
    return match_to_first


def straight_through(method: Trained) -> StraightThrough:
    """The estimation that precedes a training: its own steps and rates, everything else as in `method`."""
    own = ("name", "steps", "budget", "optimizer", "lr", "matrix_lr", "weight_decay", "width", "heads")
    return StraightThrough(**{f.name: getattr(method, f.name) for f in fields(Trained) if f.name not in own})


def training_before(method: Method) -> StraightThrough | None:
    """The training that the training of a method starts from; None for most."""
    own = isinstance(method, Trained) and getattr(method, "start", "") == "straight_through"
    return straight_through(method) if own and isinstance(method, Trained) else None


def check_start(problem: Problem, method: str, start: str, free: str | None = None) -> None:
    """Raise ConfigError where a start does not fit the sources or the other options.

    free: the value of an option that the maps of a start need, `key=value`; None: it is set.
    """
    if (
        start in ("weight_matching", "straight_through", "cca", "orthogonal_matching")
        and not problem.plan.same_shape
    ):
        raise ConfigError(
            f"method.start={start} needs sources with the width and number of heads of the merged model. Pass "
            "method.start=first, aligned or closed_form."
        )
    if start == "ot_fusion":
        require_shape_of_first(problem.plan, f"{method} method.start=ot_fusion")
    if start in MAPPED and free is not None:
        raise ConfigError(
            f"method.start={start} mixes units by full maps and has a projector for every task. Pass "
            f"method.{free}, or take another method.start."
        )


def merged_start(problem: Problem, method: Weighted, start: str) -> Solution:
    """The merge of a start with maps, before the statistics of BatchNorm are reset; with its maps."""
    merge = MAPPED[start](task_weights=method.task_weights, reset_batchnorm=False)
    return merge.fit(problem.in_fp64()).to(problem.device)


def merged_start_maps(problem: Problem, method: Weighted, start: str) -> MergeMaps:
    """Trainable full maps that fold to the merge of a start."""
    plan, fixed = problem.plan, merged_start(problem, method, start).maps
    if fixed is None:
        raise TypeError(f"method={start} has no maps")
    sources = range(len(problem.sources))
    merge = {(port, i): fixed.write(port, i).dense().cpu() for port in plan.writes for i in sources}
    unmerge = {(port, i): fixed.read(port, i).dense().cpu() for port in plan.reads for i in sources}
    units = {name: value.detach().cpu().clone() for name, value in fixed.units().items()}
    return full_maps(plan, problem.weights("cpu"), merge, unmerge, units)
