"""Projectors of the features: from those of a network of the merged size to those of every source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.folds import FoldMoments, folds_of
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import batches, network


def fitted_projectors(problem: Problem, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """U_out [d_i, d'] of every source by ridge regression on the training images, for a network of these weights.

    The ridge is chosen by cross-validation over images. Without training images the first units.
    """
    plan, images = problem.plan, problem.images
    rows = images.train
    if not len(rows):
        parts = len(plan.feature_ports)
        merged = plan.arch.features // parts
        return [plan.projector([torch.eye(arch.features // parts, merged)]) for arch in plan.source_archs]
    student = _student(problem, weights)
    teachers = [network(source, problem.device) for source in problem.sources]
    sums = _moments(problem, student, teachers, images.images[rows])
    sizes = [arch.features for arch in plan.source_archs]
    found, _ = sums.fit(None, intercept=False, groups=sizes)
    return [part.float().to(problem.device) for part in torch.split(found.matrix, sizes)]


def projectors_of_tasks(
    problem: Problem, weights: Mapping[str, Tensor], start: Sequence[Tensor], ridge: float | None
) -> tuple[Tensor, ...]:
    """U_i [d_i, d'] minimising |f_i(x) - U z(x)|^2 + ridge |U - U_i|^2 on the images of task i; start: U_i.

    ridge: None as in `fitted_projectors`.
    """
    student, found = _student(problem, weights), []
    for i, (source, prior) in enumerate(zip(problem.sources, start)):
        sums = _moments(problem, student, [network(source, problem.device)], problem.task_images(i))
        fit, _ = sums.fit(ridge, False, prior.double().cpu())
        found.append(fit.matrix.to(prior))
    return tuple(found)


def _student(problem: Problem, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of the merged size with these weights."""
    found = problem.plan.skeleton()
    found.load_state_dict(dict(weights), assign=True)
    return found.requires_grad_(False).eval()


def _moments(problem: Problem, student: nn.Module, teachers: Sequence[nn.Module], images: Inputs) -> FoldMoments:
    """Moments of the student's features and, side by side, those of the teachers."""
    sums, folds = FoldMoments(), folds_of(len(images), len(images))
    with torch.inference_mode():
        for part in batches(len(images), problem.hardware.eval_batch):
            pixels = images[part].to(problem.device)
            x, *own = (module(pixels).cpu() for module in (student, *teachers))
            sums.add(x, torch.cat(own, 1), folds[part])
    return sums
