"""The closed form as a solution of a problem: a method of its own, and the start of trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fsmerge_cli.alignment.channels import with_reset_of_clusters
from fsmerge_cli.alignment.closed_form.layered import layers
from fsmerge_cli.alignment.closed_form.options import ClosedFormOptions
from fsmerge_cli.alignment.closed_form.outline import outline
from fsmerge_cli.alignment.closed_form.solve import ClosedForm, closed_form
from fsmerge_cli.alignment.closed_form.steps import selects_units, steps
from fsmerge_cli.alignment.matching import require_images
from fsmerge_cli.architectures.ports import Role, Unit
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.images.augment import Augment
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import MergeMaps, full_maps, maps_of_ports
from fsmerge_cli.training.batches import ViewOptions
from fsmerge_cli.training.problem import Problem, Solution

IMAGES_PER_TASK = 1000
"""Images per task that `views: null` fills up to with augmented copies."""


def check_closed_form(problem: Problem, name: str) -> None:
    """Raise UserError without images, for too large a width, or an architecture of another kind."""
    require_images(problem, name)
    require_enough_units(problem.plan)
    if reason := unsolved(problem.plan):
        raise ConfigError(f"method={name} {reason}. Take method=fs_merge or method=kd with another start.")


def unsolved(plan: Plan) -> str | None:
    """What there is no closed form for, as the rest of a sentence; None where there is one."""
    if any(_turned_behind_a_norm(plan, role) for role in plan.roles.values()):
        return (
            "does not exist for rotary positions behind a norm of queries and keys: it would mix units that are "
            "turned as pairs"
        )
    known = [steps] if selects_units(plan) else [outline, layers]
    if all(order(plan) is None for order in known):
        return (
            f"does not know the order of computation of family '{plan.family.name}': it is neither blocks on a "
            "residual stream nor a chain of layers"
        )
    return None


def _turned_behind_a_norm(plan: Plan, role: Role) -> bool:
    return isinstance(role, Unit) and role.per_head and plan.spaces[role.port.space].rotary


def require_enough_units(plan: Plan) -> None:
    """Raise ConfigError where a space of the merged model has more units than those of all sources together."""
    for space in plan.spaces.values():
        if space.merged > sum(space.sources):
            raise ConfigError(
                f"method.width: the merged model has {space.merged} units in '{space.name}', but all sources "
                f"together have {sum(space.sources)}. Give at most the sum of the sources' widths."
            )


def solve(
    problem: Problem,
    options: ClosedFormOptions,
    views: int | None = None,
    augment: Augment = "strong",
    reset: Sequence[str] = (),
) -> Solution:
    """The solution on all images and their augmented views; with its maps where there are no corrections.

    reset: the layers whose statistics are reset, see `methods.resets`.
    """
    device, problem = problem.device, problem.in_fp64()
    found = closed_form(problem, rows(problem, views, augment), options)
    solution = Solution(found.weights, found.projectors, facts=figures(found))
    if not options.correct:
        maps = as_maps(problem.plan, found)
        weights = {name: t.detach() for name, t in fold(problem.plan, maps, problem.weights()).items()}
        solution = replace(solution, weights=weights, maps=maps)
    if not (reset and len(problem.images)):
        return solution.to(device)
    places = range(len(problem.sources))
    merge = {port.space: [found.merge[port, i] for i in places] for port in problem.plan.writes}
    return with_reset_of_clusters(problem, solution, merge, reset).to(device)


def rows(problem: Problem, views: int | None, augment: Augment) -> Images:
    """All images and their augmented copies; the images of `problem` come first. views: see `copies_per_image`."""
    images = problem.images
    views = copies_per_image(len(images), len(problem.sources), views)
    if views == 0:
        return images
    everything = replace(images, train=torch.arange(len(images)))
    return ViewOptions(augment, views).copies(everything, problem.seed)


def copies_per_image(images: int, tasks: int, views: int | None) -> int:
    """`views`; None: so many copies of all `images` that there are IMAGES_PER_TASK images per task."""
    if views is not None or not images:
        return views or 0
    return max(0, math.ceil(IMAGES_PER_TASK * max(1, tasks) / images) - 1)


def started(problem: Problem) -> Solution:
    """The solution with default options, for a training to start from."""
    return solve(_trained_on(problem), _options(problem, correct=True))


def started_maps(problem: Problem) -> tuple[MergeMaps, Mapping[str, float]]:
    """Trainable full maps that fold to the closed form without corrections, and its facts."""
    plan, own = problem.plan, _trained_on(problem.in_fp64())
    found = closed_form(own, rows(own, None, "strong"), _options(problem, correct=False))
    fixed, sources = as_maps(plan, found), range(len(problem.sources))
    merge = {(port, i): fixed.write(port, i).dense() for port in plan.writes for i in sources}
    unmerge = {(port, i): fixed.read(port, i).dense() for port in plan.reads for i in sources}
    return full_maps(plan, problem.weights("cpu"), merge, unmerge, fixed.units()), figures(found)


def _options(problem: Problem, correct: bool) -> ClosedFormOptions:
    return ClosedFormOptions(correct=correct, batch=problem.hardware.eval_batch, seed=problem.seed)


def _trained_on(problem: Problem) -> Problem:
    """Only the images that are trained on: the others tell which step was the best."""
    images, kept = problem.images, problem.images.train
    own = replace(
        images,
        images=images.images[kept],
        task=images.task[kept],
        train=torch.arange(len(kept)),
        validation=images.validation[:0],
    )
    return replace(problem, images=own)


def as_maps(plan: Plan, found: ClosedForm) -> MergeMaps:
    """The maps of a solution without corrections."""
    units = {name: found.weights[name] for name, role in plan.roles.items() if isinstance(role, Unit)}
    read = dict(found.unmerge)
    for i, U in enumerate(found.projectors):  # block-diagonal where the features have parts
        blocks = zip(plan.feature_ports, U.chunk(len(plan.feature_ports)))
        read |= {(port, i): rows.chunk(len(plan.feature_ports), 1)[n] for n, (port, rows) in enumerate(blocks)}
    return maps_of_ports(plan, found.merge, read, units)


def figures(found: ClosedForm) -> dict[str, float]:
    """What to report of a solution: by layer where there are several, and by source."""
    values: dict[str, float] = {}
    for name, by_layer in found.facts.items():
        for place, layer in enumerate(by_layer):
            key = name if len(by_layer) == 1 else f"{name}_{place}"
            if name == "logits_kept":
                values[key] = min(layer)
            elif name == "ridge" and len(layer) > 1:
                values |= {f"{key}_{kind}": value for kind, value in zip(("read", "write", "correction"), layer)}
            else:
                suffixes = [""] if len(layer) == 1 else [f"_source_{i + 1}" for i in range(len(layer))]
                values |= {f"{key}{suffix}": value for suffix, value in zip(suffixes, layer)}
    return values
