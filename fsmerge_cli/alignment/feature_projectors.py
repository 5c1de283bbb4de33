"""Projectors of the features: from those of a network of the merged size to those of every source."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form.folds import FoldMoments, folds_of
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import batches, network


def fitted_projectors(problem: Problem, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """U_out [d_i, d'] of every source by ridge regression on the training images, for a network of these weights.

    The ridge is chosen by cross-validation over images. Without training images the first units.
    """
    plan, images = problem.plan, problem.images
    rows = images.train
    if not len(rows):
        return [torch.eye(arch.features, plan.arch.features) for arch in plan.source_archs]
    student = plan.skeleton()
    student.load_state_dict(dict(weights), assign=True)
    modules = [student, *(network(source, problem.device) for source in problem.sources)]
    sums, folds = FoldMoments(), folds_of(len(rows), len(rows))
    with torch.inference_mode():
        for part in batches(len(rows), problem.hardware.eval_batch):
            pixels = images.images[rows[part]].to(problem.device)
            x, *own = (module(pixels).float().cpu() for module in modules)
            sums.add(x, torch.cat(own, 1), folds[part])
    sizes = [arch.features for arch in plan.source_archs]
    found, _ = sums.fit(None, intercept=False, groups=sizes)
    return [part.float().to(problem.device) for part in torch.split(found.matrix, sizes)]
