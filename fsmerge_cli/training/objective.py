"""The objective: relative error of the projected merged features, and the losses on the logits of the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.common.distributed import World
from fsmerge_cli.common.inputs import Inputs, feature_rows, per_feature, reads
from fsmerge_cli.data.transfer import Feed
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.teacher_group import Pending, TeacherGroup
from fsmerge_cli.training.teachers import TeacherTargets

Rows = TypeVar("Rows", Tensor, Inputs)

TEMPERATURE = 2.0
"""Distillation temperature: divides the logits, so that the probabilities of all classes contribute."""


@dataclass(frozen=True)
class Batch:
    """Inputs of one step and the targets of every source.

    mask: the images on which each source is compared, [k, n]. pixels: positions in the batch [m] -> inputs
    [m, ...]. targets: source, positions inside its mask [m] -> its features [m, d_i]. Both are computed when
    called. other_task: the images that are known to belong to another task than the source's, [k, n]. start:
    positions -> starts whatever their targets need, so that it is computed beside the student. reads: rows of
    features of every image [n], where they have several (tokens); features and targets then are these rows.
    Masks and positions are in host memory: reading one on a GPU would wait for all work queued there.
    """

    mask: Tensor
    pixels: Callable[[Tensor], Inputs]
    targets: Callable[[int, Tensor], Tensor]
    other_task: Tensor
    start: Callable[[Tensor], None] = lambda positions: None
    reads: Tensor | None = None

    @classmethod
    def of(cls, pixels: Feed | Inputs, targets: Sequence[TeacherTargets], rows: Tensor) -> Batch:
        """The unchanged images `rows` of a table, with captured targets."""
        rows = rows.cpu()
        mask, other_task = (torch.stack([m[rows] for m in masks]) for masks in _masks(targets))
        counts = None if targets[0].reads is None else targets[0].reads[rows]
        return cls(
            mask,
            lambda use: pixels[rows[use]],
            lambda i, use: targets[i].at(rows[use]),
            other_task,
            reads=counts,
        )

    @classmethod
    def live(cls, pixels: Inputs, targets: Sequence[TeacherTargets], rows: Tensor, other: Tensor) -> Batch:
        """New views of the images `rows`, on which the teachers are run during the step.

        other: the images that are mixed into them (equal to `rows` for unmixed images).
        """
        mask, other_task = (torch.stack([m[rows] for m in masks]) for masks in _masks(targets))
        other_task = other_task & torch.stack([own.other_task[other] for own in targets])

        def at(use: Tensor) -> Inputs:
            return select_rows(pixels, use)

        if (group := targets[0].group) is None:
            return cls(mask, at, lambda i, use: targets[i].run(at(use)), other_task, reads=reads(pixels))
        passes = _GroupPasses(group, mask, at)
        return cls(mask, at, passes.targets, other_task, passes.start)

    def counts(self) -> Tensor:
        """Numbers of images (of their rows) in the mask and of other tasks, per source, [2, k]; at least 1."""
        times = 1 if self.reads is None else self.reads
        return torch.stack([(own * times).sum(1) for own in (self.mask, self.other_task)]).clamp(min=1)

    def rows(self, positions: Tensor, use: Tensor) -> Tensor:
        """The rows of the features of `positions` that belong to `use`, places among these."""
        return feature_rows(None if self.reads is None else self.reads[positions], use)

    def positions(self) -> Tensor:
        """All positions, [n]."""
        return torch.arange(self.mask.shape[1])


class _GroupPasses:
    """The passes of all teachers over the positions of a batch that are computed now."""

    def __init__(self, group: TeacherGroup, mask: Tensor, pixels: Callable[[Tensor], Inputs]) -> None:
        self._group, self._mask, self._pixels = group, mask, pixels
        self._pending: Pending | None = None

    def start(self, positions: Tensor) -> None:
        """Start the passes, each over the positions inside the teacher's mask."""
        self._pending = None  # frees the features of another part of the batch
        if bool(self._mask[:, positions].all()):
            inputs = [self._pixels(positions)] * len(self._mask)
        else:
            inputs = [self._pixels(positions[own[positions]]) for own in self._mask]
        self._pending = self._group.start(inputs)

    def targets(self, teacher: int, use: Tensor) -> Tensor:
        """The features of one teacher; use: the started positions inside its mask."""
        if self._pending is None:
            raise RuntimeError("the passes were not started")
        return self._pending.of(teacher)


def select_rows(table: Rows, use: Tensor) -> Rows:
    """The rows `use` (increasing, in host memory) of a table on any device; the table itself for all rows."""
    if len(use) == len(table):
        return table
    found: Rows = table[use.to(table.device, non_blocking=True)]
    return found


def _masks(targets: Sequence[TeacherTargets]) -> tuple[list[Tensor], list[Tensor]]:
    return [own.mask for own in targets], [own.other_task for own in targets]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses that are added to the feature loss.

    logit_weight: of the KL divergence between the logits of the heads. cross_task_weight: factor of that
    divergence on images of other tasks. outlier_exposure: of the confidence penalty on images of other tasks.
    balanced: every source has the same share of the gradient, whatever its error is.
    """

    logit_weight: float = 0.0
    outlier_exposure: float = 0.0
    cross_task_weight: float = 1.0
    balanced: bool = False


def objective(
    student: Student,
    batch: Batch,
    targets: Sequence[TeacherTargets],
    loss_weights: LossWeights = LossWeights(),
    positions: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Weighted mean over sources of the relative squared feature error and the losses on the logits.

    sum_i w_i [mean_{x in mask_i} (|U_out,i z'(x) - f_i(x)|^2 / (d_i var_i) + logit_weight c_i(x) KL_i(x)) +
    outlier_exposure mean_{x of other tasks} KL(uniform || p_i(x))] / k. The mean of the w_i is 1. Where the patch
    tokens of a source count, their relative error stands in place of the first term, or is averaged with it.
    c_i(x) is `cross_task_weight` where x is of another task and 1 elsewhere. positions: a part of the batch, such
    as the share of one process (None: all of it). The objective of a batch is the sum over its parts, where
    `counts` are those of the whole batch.
    """
    positions = batch.positions() if positions is None else positions
    counts = batch.counts() if counts is None else counts
    batch.start(positions)
    features = student(batch.pixels(positions))
    total, losses = features.new_zeros((), dtype=torch.float32), list[Tensor]()
    for i, own in enumerate(targets):
        error = source_error(student, features, batch, positions, own, i, loss_weights) / counts[0, i]
        other = (
            batch.other_task[i][positions].nonzero().flatten() if loss_weights.outlier_exposure else positions[:0]
        )
        if own.head is not None and not own.head.regression and len(other):
            logits = own.head(student.project(select_rows(features, batch.rows(positions, other)), i).float())
            error = error + loss_weights.outlier_exposure * confidence_penalty(logits) / counts[1, i]
        losses.append(error)
        total = total + own.weight * error
    mean: Tensor = balanced(losses, [own.weight for own in targets]) if loss_weights.balanced else total
    return mean / len(targets)


def balanced(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The value of sum_i w_i l_i, with the gradient of mean_j(l_j) sum_i w_i log l_i.

    Every loss moves the weights by its relative change. A loss of 0, such as that of a batch without images of the
    source, keeps its gradient.
    """
    values = torch.stack([loss.detach().float() for loss in losses])
    factors = torch.where(values > 0, values.mean() / values.clamp(min=1e-30), torch.ones_like(values))
    terms = torch.stack([w * factor * loss for w, factor, loss in zip(weights, factors, losses)])
    value = torch.stack([w * own for w, own in zip(weights, values)]).sum()
    return terms.sum() + (value - terms.sum()).detach()


def source_error(
    student: Student,
    features: Tensor,
    batch: Batch,
    positions: Tensor,
    own: TeacherTargets,
    source: int,
    loss_weights: LossWeights,
) -> Tensor:
    """Loss of one source, summed over the positions inside its mask.

    Without such a position it is a zero with a graph: every process needs a gradient for every parameter.
    """
    use, tokens = batch.mask[source][positions].nonzero().flatten(), own.tokens
    if not len(use):
        zero = student.project(features[:1], source)[:0].float().sum()
        return zero if tokens is None else zero + student.project_tokens(features[:1], source)[:0].float().sum()
    target, rows = batch.targets(source, positions[use]), select_rows(features, batch.rows(positions, use))
    estimate = student.project(rows if tokens is None or tokens.pooled else rows.detach(), source)
    pooled = target if tokens is None else tokens.layout.features(target)
    if own.whitening is None:
        error = (estimate - pooled).square().sum() / (pooled.shape[1] * own.variance)
    else:
        error = ((estimate - pooled).float() @ own.whitening).square().sum() / pooled.shape[1]
    if tokens is not None:
        error = tokens.combined(error, tokens.error(student.project_tokens(rows, source), target))
    if loss_weights.logit_weight and own.head is not None:
        distance = distance_of(own, own.head(estimate.float()), own.head(pooled))
        of_others = batch.other_task[source][positions[use]]
        of_others = per_feature(of_others, None if batch.reads is None else batch.reads[positions[use]])
        factor = torch.where(of_others, loss_weights.cross_task_weight, 1.0)
        factor = factor.to(distance.device, non_blocking=True)
        error = error + loss_weights.logit_weight * (factor * distance).sum()
    return error


def distance_of(own: TeacherTargets, student: Tensor, teacher: Tensor) -> Tensor:
    """How far the outputs of a head are from the source's, by row, [n]: a divergence of the predicted classes.

    Of a predicted number it is the squared error, relative to the variance of the source's numbers.
    """
    if own.head is not None and own.head.regression:
        return (student - teacher).square().sum(1) / own.output_variance
    return divergence(student, teacher)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence between the softened predictions for logits [n, classes], per image, [n] (nats, times T^2).

    Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2.
    """
    p, q = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
    return F.kl_div(p, q, reduction="none", log_target=True).sum(1) * TEMPERATURE**2


def confidence_penalty(logits: Tensor) -> Tensor:
    """KL divergence from the uniform distribution to the predictions for logits [n, classes], summed (nats).

    Deep Anomaly Detection with Outlier Exposure, arXiv 1812.04606, section 3: on images of other tasks it trains a
    head to be unconfident, which improves the accuracy when the task is not given.
    """
    return -(F.log_softmax(logits, dim=1).mean(1) + math.log(logits.shape[1])).sum()


class StepLoss(nn.Module):
    """The loss of a student as a module, so that a wrapper (DDP) sees every use of a parameter in one forward."""

    def __init__(
        self, student: Student, targets: Sequence[TeacherTargets], world: World, loss_weights: LossWeights
    ) -> None:
        super().__init__()
        self.student = student
        self.targets = targets
        self.world = world
        self.loss_weights = loss_weights

    def forward(self, batch: Batch, positions: Tensor, counts: Tensor) -> Tensor:
        """Contribution of `positions` to the objective of a batch with `counts`."""
        loss = objective(self.student, batch, self.targets, self.loss_weights, positions, counts)
        # DDP averages the gradients over the processes; the objective is the sum.
        return loss * self.world.size
