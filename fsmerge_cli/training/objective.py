"""What is trained and what it is trained for: the error of the merged features, read out for every source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.common.distributed import World
from fsmerge_cli.data.transfer import Feed
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.teachers import TeacherTargets

TEMPERATURE = 2.0
"""Divides the logits that are compared, so that what a source thinks of the wrong labels counts as well."""


@dataclass(frozen=True)
class Batch:
    """Questions to the sources, and their answers.

    wanted: which source is asked what, [k, n]. pixels: positions in the batch [m] -> images [m, C, H, W].
    answers: source, positions that it is asked -> its features [m, d_i]. Nothing is computed before its time.
    foreign: which image is known to be none of a source's, [k, n].
    Masks and positions are in host memory: to look into one on a GPU is to wait for all that it has yet to do.
    """

    wanted: Tensor
    pixels: Callable[[Tensor], Tensor]
    answers: Callable[[int, Tensor], Tensor]
    other_task: Tensor

    @classmethod
    def of(cls, pixels: Feed | Tensor, targets: Sequence[TeacherTargets], rows: Tensor) -> Batch:
        """The images `rows` of a table as they are, with the answers that were captured."""
        rows = rows.cpu()
        wanted, other_task = (torch.stack([m[rows] for m in masks]) for masks in _masks(targets))
        return cls(wanted, lambda use: pixels[rows[use]], lambda i, use: targets[i].at(rows[use]), other_task)

    @classmethod
    def asked(cls, pixels: Tensor, targets: Sequence[TeacherTargets], rows: Tensor, other: Tensor) -> Batch:
        """New images made of the images `rows`, which the sources answer now.

        other: the images that are mixed into them (`rows` themselves where none is).
        """
        wanted, other_task = (torch.stack([m[rows] for m in masks]) for masks in _masks(targets))
        other_task = other_task & torch.stack([own.other_task[other] for own in targets])

        def at(use: Tensor) -> Tensor:
            return taken(pixels, use)

        return cls(wanted, at, lambda i, use: targets[i].answer(at(use)), other_task)

    def counts(self) -> Tensor:
        """How many images each source is asked, and is none of, [2, k]; 1 for none, to be divided by."""
        return torch.stack([self.wanted.sum(1), self.other_task.sum(1)]).clamp(min=1)

    def positions(self) -> Tensor:
        """All positions, [n]."""
        return torch.arange(self.wanted.shape[1])


def taken(table: Tensor, use: Tensor) -> Tensor:
    """The rows `use` (increasing, in host memory) of a table on any device; itself where they are all."""
    return table if len(use) == len(table) else table[use.to(table.device, non_blocking=True)]


def _masks(targets: Sequence[TeacherTargets]) -> tuple[list[Tensor], list[Tensor]]:
    return [own.wanted for own in targets], [own.other_task for own in targets]


@dataclass(frozen=True)
class LossWeights:
    """What counts beside the features.

    logits: the distance of the heads' answers; foreign: what of it counts of images that are known to be of
    another task. apart: how sure a head is of such images.
    """

    logit_weight: float = 0.0
    outlier_exposure: float = 0.0
    cross_task_weight: float = 1.0


def objective(
    student: Student,
    batch: Batch,
    targets: Sequence[TeacherTargets],
    loss_weights: LossWeights = LossWeights(),
    positions: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Weighted mean over sources of the relative squared error of their projector, and of their heads' answers.

    sum_i w_i [mean_{x asked of i} (|U_out,i z'(x) - f_i(x)|^2 / (d_i var_i) + logits c_i(x) KL_i(x)) + apart
    mean_{x foreign to i} KL(uniform || p_i(x))] / k, the mean of the w_i being 1, c_i(x) being `foreign` where x
    is foreign to i and 1 elsewhere. positions: a part of the batch, such as one process's share (None: all of
    it); the objective of the batch is the sum over its parts where `counts` are those of the batch.
    """
    positions = batch.positions() if positions is None else positions
    counts = batch.counts() if counts is None else counts
    features = student(batch.pixels(positions))
    total = features.new_zeros((), dtype=torch.float32)
    for i, own in enumerate(targets):
        error = source_error(student, features, batch, positions, own, i, loss_weights) / counts[0, i]
        strange = (
            batch.other_task[i][positions].nonzero().flatten() if loss_weights.outlier_exposure else positions[:0]
        )
        if own.head is not None and len(strange):
            answers = own.head(student.project(taken(features, strange), i).float())
            error = error + loss_weights.outlier_exposure * confidence_penalty(answers) / counts[1, i]
        total = total + own.weight * error
    mean: Tensor = total / len(targets)
    return mean


def source_error(
    student: Student,
    features: Tensor,
    batch: Batch,
    positions: Tensor,
    own: TeacherTargets,
    source: int,
    loss_weights: LossWeights,
) -> Tensor:
    """Error of one source's projector, summed over the positions that it is asked.

    Of none it is a zero with a gradient: every process has to give every parameter one.
    """
    use = batch.wanted[source][positions].nonzero().flatten()
    if not len(use):
        return student.project(features[:1], source)[:0].float().sum()
    answers = batch.answers(source, positions[use])
    estimate = student.project(taken(features, use), source)
    error = (estimate - answers).square().sum() / (answers.shape[1] * own.variance)
    if loss_weights.logit_weight and own.head is not None:
        distance = divergence(own.head(estimate.float()), own.head(answers))
        share = torch.where(batch.other_task[source][positions[use]], loss_weights.cross_task_weight, 1.0)
        error = error + loss_weights.logit_weight * (share.to(distance.device, non_blocking=True) * distance).sum()
    return error


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of the softened answers [n, classes] of every image, [n] (nats, times T^2).

    Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2.
    """
    p, q = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
    return F.kl_div(p, q, reduction="none", log_target=True).sum(1) * TEMPERATURE**2


def confidence_penalty(logits: Tensor) -> Tensor:
    """How far answers [n, classes] are from having no opinion: KL divergence of the uniform one, summed (nats).

    Deep Anomaly Detection with Outlier Exposure, arXiv 1812.04606, section 3: with it, images of the other tasks
    teach a head what is none of its business, which is what tells the tasks apart when all heads are asked.
    """
    return -(F.log_softmax(logits, dim=1).mean(1) + math.log(logits.shape[1])).sum()


class Step(nn.Module):
    """The loss of a student as a module: whatever wraps it sees every use of a parameter in one forward."""

    def __init__(
        self, student: Student, targets: Sequence[TeacherTargets], world: World, loss_weights: LossWeights
    ) -> None:
        super().__init__()
        self.student = student
        self.targets = targets
        self.world = world
        self.loss_weights = loss_weights

    def forward(self, batch: Batch, positions: Tensor, counts: Tensor) -> Tensor:
        """What `positions` add to the objective of a batch, of which there are `counts`."""
        loss = objective(self.student, batch, self.targets, self.loss_weights, positions, counts)
        # DDP takes the mean of the gradients over the processes; the objective is the sum.
        return loss * self.world.size
