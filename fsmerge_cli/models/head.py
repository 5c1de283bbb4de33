"""A task head: a linear classifier on the features of a backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Head:
    """A linear classifier: weight [classes, d], bias [classes] or None, one label per class.

    named: whether the labels are class names, which other tasks may share, or only row indices.
    normalize: features are scaled to unit length first. layer_norm: eps of a LayerNorm without weight and bias
    that is applied to the features first (None: there is none; never together with normalize). projector: [d, d']
    from merged features to the features that the head was trained on, if it cannot be folded into the weight
    (None: there is none). temperature, shift: for the joint decision over the labels of several heads, the largest
    logit / temperature + shift; they change nothing within a head. regression: whether it predicts a number, its
    one output, whose name is the only label.
    """

    weight: Tensor
    bias: Tensor | None
    labels: tuple[str, ...]
    normalize: bool = False
    named: bool = True
    projector: Tensor | None = None
    layer_norm: float | None = None
    temperature: float = 1.0
    shift: float = 0.0
    regression: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, classes] of features [n, d] (or [n, d'] if there is a projector)."""
        if self.projector is not None:
            features = features @ self.projector.T
        if self.normalize:
            features = F.normalize(features, dim=-1)
        if self.layer_norm is not None:
            features = F.layer_norm(features, features.shape[-1:], eps=self.layer_norm)
        return F.linear(features, self.weight, self.bias)

    def joint_logits(self, features: Tensor) -> Tensor:
        """Logits [n, classes] that are compared with those of other heads."""
        return self(features) / self.temperature + self.shift

    def __repr__(self) -> str:
        """One line: the sizes."""
        if self.regression:
            return f"Head({self.weight.shape[1]} features -> a number)"
        return f"Head({self.weight.shape[1]} features -> {len(self.labels)} classes)"

    @property
    def stated(self) -> tuple[object, ...]:
        """What a file states about the head besides its tensors."""
        return self.labels, self.normalize, self.layer_norm, self.regression

    @property
    def absorbs_projector(self) -> bool:
        """Whether a linear map of the features can be folded into the weight."""
        return not self.normalize and self.layer_norm is None

    def to(self, device: torch.device | str) -> Head:
        """The same head on `device`."""
        bias, projector = (None if t is None else t.to(device) for t in (self.bias, self.projector))
        return replace(self, weight=self.weight.to(device), bias=bias, projector=projector)


def of_classes(heads: Mapping[str, Head]) -> dict[str, Head]:
    """The heads that predict one of several classes; the others predict a number."""
    return {name: head for name, head in heads.items() if not head.regression}


def joint_labels(heads: Mapping[str, Head]) -> list[str]:
    """One name for each label of all heads, in their order: the label, or `TASK: LABEL` where that is ambiguous.

    >>> one = Head(torch.zeros(2, 1), None, ("cat", "other"))
    >>> joint_labels({"pets": one, "wild": replace(one, labels=("lynx", "other"))})
    ['cat', 'pets: other', 'lynx', 'wild: other']
    """
    heads = of_classes(heads)
    times = Counter(label for head in heads.values() for label in head.labels)
    return [
        label if times[label] == 1 and (head.named or len(heads) == 1) else f"{name}: {label}"
        for name, head in heads.items()
        for label in head.labels
    ]


def joint_classifier(heads: Mapping[str, Head]) -> tuple[Tensor, Tensor] | None:
    """Weight [classes, d] and bias [classes] of one linear classifier over the labels of all heads.

    Temperatures and shifts are folded in. None if some head is not one linear map of the features.
    """
    if not heads or not all(head.absorbs_projector and head.projector is None for head in heads.values()):
        return None
    weights, biases = [], []
    for head in heads.values():
        bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias
        weights.append(head.weight / head.temperature)
        biases.append(bias / head.temperature + head.shift)
    return torch.cat(weights), torch.cat(biases)
