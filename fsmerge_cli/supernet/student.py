"""What a training adjusts: a module that gives merged features and one projection per source."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Student(nn.Module, ABC):
    """What is trained: `forward` gives merged features [n, d'] of images [n, C, H, W]."""

    def matrices(self) -> list[nn.Parameter]:
        """The parameters that are (stacks of) matrices between hidden units."""
        return []

    @abstractmethod
    def project(self, features: Tensor, source: int) -> Tensor:
        """Estimate of one source's features, [n, d'] -> [n, d_i]."""
