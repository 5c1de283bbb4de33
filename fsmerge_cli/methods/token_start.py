"""Trainings in which patch tokens count: the student with token projectors that fit its initial weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fsmerge_cli.alignment.token_projectors import MAX_IMAGES, fitted
from fsmerge_cli.architectures.token_outputs import TokenLayout, on_grid, token_layout
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data.draw import Images
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.supernet.token_reader import TokenProjector, TokenReader
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import TeacherTargets

BATCH = 16


def token_reader(problem: Problem, student: Student, images: Images, targets: Sequence[TeacherTargets]) -> Student:
    """The student itself where only pooled features count; else with a projector for every source's tokens.

    The projectors are fitted to the tokens of the sources on training images, by least squares. Raises DataError
    for a source without training images.
    """
    layout = token_layout(problem.plan.family, problem.plan.arch) if problem.plan.reads_tokens else None
    if layout is None:
        return student
    sources = {i: own.tokens.layout for i, own in enumerate(targets) if own.tokens is not None}
    projectors = {i: _fitted(problem, student, images, targets[i], layout, own) for i, own in sources.items()}
    return TokenReader(student, layout, sources, projectors).to(problem.device)


def _fitted(
    problem: Problem,
    student: Student,
    images: Images,
    targets: TeacherTargets,
    layout: TokenLayout,
    source: TokenLayout,
) -> TokenProjector:
    rows = images.train[targets.mask[images.train]][:MAX_IMAGES]
    if not len(rows):
        raise DataError("a source whose patch tokens count has no training images. Pass method.targets=all.")

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for part in torch.split(rows, BATCH):
            with torch.no_grad(), problem.hardware.autocast(problem.device):
                outputs = student(images.images[part].to(problem.device))
            mine = on_grid(layout.tokens(outputs), layout.grid, source.grid)
            yield mine, source.tokens(targets.at(part))

    return fitted(pairs(), len(rows))
