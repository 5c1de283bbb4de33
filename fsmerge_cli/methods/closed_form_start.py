"""The closed form as the start of a training, solved on the training images only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli.architectures.ports import Unit
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.supernet.map_set import MergeMaps, full_maps
from fsmerge_cli.training.problem import Problem, Solution

CLOSED_FORM_RATE = 0.1
"""Factor of the learning rates after a start from the closed form; the usual ones leave its solution first."""


def check_closed_form(problem: Problem) -> None:
    """Raise UserError where the closed form does not apply."""
    FSClosedForm().check(problem)


def solved_weights(problem: Problem) -> tuple[dict[str, Tensor], tuple[Tensor, ...], Mapping[str, float]]:
    """Weights and projectors of the closed form, and its facts."""
    found = _solved(problem, correct=True)
    return dict(found.weights), found.projectors, found.facts


def solved_maps(problem: Problem) -> tuple[MergeMaps, Mapping[str, float]]:
    """Trainable full maps that fold to the closed form without corrections, and its facts."""
    found, plan, sources = _solved(problem, correct=False), problem.plan, range(len(problem.sources))
    if found.maps is None:
        raise ConfigError("the closed form without corrections has maps")  # by its own definition
    fixed = found.maps
    units = {name: found.weights[name] for name, role in plan.roles.items() if isinstance(role, Unit)}
    merge = {(port, i): fixed.write(port, i).dense() for port in plan.writes for i in sources}
    unmerge = {(port, i): fixed.read(port, i).dense() for port in plan.reads for i in sources}
    return full_maps(plan, problem.weights("cpu"), merge, unmerge, units), found.facts


def _solved(problem: Problem, correct: bool) -> Solution:
    """The solution on the images that are trained on; the others tell which step was the best."""
    images = problem.images
    rows = images.train
    kept = replace(
        images,
        images=images.images[rows],
        task=images.task[rows],
        train=torch.arange(len(rows)),
        validation=images.validation[:0],
    )
    return FSClosedForm(correct=correct).fit(replace(problem, images=kept))
