"""How the outputs of a classifier are compared with labels: of classes, of the tags of words, of a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fsmerge_cli.common.inputs import Inputs, reads

NO_LABEL = -1
"""The class of a word without a tag, which has no part in the loss."""


@dataclass(frozen=True)
class Criterion:
    """Cross-entropy of classes (nats), or the squared error of one number.

    number: whether a number is predicted. label_smoothing: of classes; numbers have none.
    """

    number: bool = False
    label_smoothing: float = 0.0

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Sum over the rows with a label, of outputs [m, classes] or [m, 1]; see `Pool` on labels."""
        if self.number:
            return (outputs[:, 0] - labels).square().sum()
        return F.cross_entropy(
            outputs, labels, ignore_index=NO_LABEL, label_smoothing=self.label_smoothing, reduction="sum"
        )

    def exact(self) -> Criterion:
        """The same without label smoothing, for the validation."""
        return Criterion(self.number)

    def correct(self, outputs: Tensor, labels: Tensor) -> int | None:
        """Number of rows whose largest logit is that of the label; None for numbers."""
        return None if self.number else int((outputs.argmax(1) == labels).sum().item())


def count(labels: Tensor) -> int:
    """Number of rows with a label. Mixed classes [m, classes] and numbers are one each."""
    return len(labels) if labels.is_floating_point() else int((labels != NO_LABEL).sum().item())


def with_label(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of features [m, d] that have a label, and these."""
    kept = labels != NO_LABEL
    return (features, labels) if labels.is_floating_point() or bool(kept.all()) else (features[kept], labels[kept])


def parts_of(inputs: Inputs, labels: Tensor, size: int) -> Sequence[Tensor]:
    """The labels of consecutive parts of at most `size` inputs."""
    several = reads(inputs)
    if several is None:
        return torch.split(labels, size)
    return torch.split(labels, [int(part.sum()) for part in torch.split(several, size)])
