"""A task head: a linear classifier on the features of a backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A linear classifier: weight [classes, d], bias [classes] or None, one label per class.

    named: whether the labels are class names, which other tasks may share, or only row indices.
    normalize: features are scaled to unit length first. layer_norm: eps of a LayerNorm without weight and bias
    that is applied to the features first (None: there is none; never together with normalize). projector: [d, d']
    from merged features to the features that the head was trained on, if it cannot be folded into the weight
    (None: there is none).
    """

    weight: Tensor
    bias: Tensor | None
    labels: tuple[str, ...]
    normalize: bool = False
    named: bool = True
    projector: Tensor | None = None
    layer_norm: float | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, classes] of features [n, d] (or [n, d'] if there is a projector)."""
        if self.projector is not None:
            features = features @ self.projector.T
        if self.normalize:
            features = F.normalize(features, dim=-1)
        if self.layer_norm is not None:
            features = F.layer_norm(features, features.shape[-1:], eps=self.layer_norm)
        return F.linear(features, self.weight, self.bias)

    @property
    def stated(self) -> tuple[object, ...]:
        """What a file states about the head besides its tensors."""
        return self.labels, self.normalize, self.layer_norm

    @property
    def absorbs_projector(self) -> bool:
        """Whether a linear map of the features can be folded into the weight."""
        return not self.normalize and self.layer_norm is None

    def to(self, device: torch.device | str) -> Head:
        """The same head on `device`."""
        bias, projector = (None if t is None else t.to(device) for t in (self.bias, self.projector))
        return replace(self, weight=self.weight.to(device), bias=bias, projector=projector)
