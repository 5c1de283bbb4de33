"""A backbone with a classifier head, as `finetune` trains it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.common.inputs import Inputs, pixels_of


class Classifier(nn.Module):
    """A backbone with a head: images in 0..1 [n, C, H, W], or texts -> logits [n, classes].

    mean, std: per channel or of all; images are normalised with them first.
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

    def features(self, inputs: Inputs) -> Tensor:
        """Features [n, d] of images in 0..1, or of texts."""
        if self.normalised:
            inputs = (pixels_of(inputs) - self.mean) / self.std
        found: Tensor = self.backbone(inputs)
        return found

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(inputs))
        return logits
