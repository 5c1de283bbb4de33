"""A backbone with a classifier head, as `finetune` trains it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A backbone with a head: images in 0..1 [n, C, H, W] -> logits [n, classes].

    mean, std: per channel or of all; the images are normalised with them first.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, head: nn.Linear, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.normalised = tuple(mean) != (0.0,) or tuple(std) != (1.0,)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """Features [n, d] of images in 0..1."""
        found: Tensor = self.backbone((pixels - self.mean) / self.std if self.normalised else pixels)
        return found

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(pixels))
        return logits
