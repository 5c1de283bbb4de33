"""What is trained and what it is trained for: the error of the merged features, read out for every source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.distributed import World
from fsmerge_cli.features import Captured
from fsmerge_cli.feeding import Feed


class Student(nn.Module, ABC):
    """What is trained: `forward` gives merged features [n, d'] of images [n, C, H, W]."""

    @abstractmethod
    def readout(self, features: Tensor, source: int) -> Tensor:
        """Estimate of one source's features, [n, d'] -> [n, d_i]."""


def objective(
    student: Student, images: Tensor, targets: Sequence[Captured], rows: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Weighted mean over sources of the relative squared error of their readout.

    sum_i w_i mean_{x wanted by i} |U_out,i z'(x) - f_i(x)|^2 / (d_i var_i) / k, the w_i of mean 1; images are the
    rows' pixels.
    counts: images wanted by each source [k], where `rows` is one process's share of the batch (None: all of
    it); the objective of the batch is then the sum over the processes.
    """
    features = student(images)
    counts = wanted(targets, rows) if counts is None else counts
    errors = [own.weight * source_error(student, features, own, rows, i) for i, own in enumerate(targets)]
    return (torch.stack(errors) / counts).sum() / len(targets)


def wanted(targets: Sequence[Captured], rows: Tensor) -> Tensor:
    """How many of the rows each source is compared on, [k]; 1 for none, so that one may divide by it."""
    return torch.stack([own.wanted[rows].sum() for own in targets]).clamp(min=1)


def source_error(student: Student, features: Tensor, own: Captured, rows: Tensor, source: int) -> Tensor:
    """Relative squared error of one source's readout, summed over the rows that are wanted.

    Of none it is a zero with a gradient: every process has to give every parameter one.
    """
    use = own.wanted[rows]
    if not bool(use.any()):
        return student.readout(features[:1], source)[:0].float().sum()
    difference = student.readout(features[use], source) - own.at(rows[use])
    return difference.square().sum() / (difference.shape[1] * own.variance)


class Step(nn.Module):
    """The loss of a student as a module: whatever wraps it sees every use of a parameter in one forward."""

    def __init__(self, student: Student, targets: Sequence[Captured], world: World) -> None:
        super().__init__()
        self.student = student
        self.targets = targets
        self.world = world

    def forward(self, pixels: Feed, rows: Tensor, counts: Tensor) -> Tensor:
        """What `rows` add to the objective of a batch; pixels are those of all images, counts the batch's."""
        loss = objective(self.student, pixels[rows], self.targets, rows, counts)
        # DDP takes the mean of the gradients over the processes; the objective is the sum.
        return loss * self.world.size
