"""The interface of a trainable module with merged features and one projector per source."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Student(nn.Module, ABC):
    """A trainable module; `forward` maps inputs (pixels [n, C, H, W]) to merged features [n, d']."""

    def matrices(self) -> list[nn.Parameter]:
        """The parameters that are matrices between hidden units, or stacks of them."""
        return []

    @abstractmethod
    def project(self, features: Tensor, source: int) -> Tensor:
        """Projector of one source: the estimate of its features, [n, d'] -> [n, d_i]."""

    def project_tokens(self, features: Tensor, source: int) -> Tensor:
        """The estimate of the patch tokens of one source, [n, T_i, d_i], from outputs that have tokens."""
        raise NotImplementedError("the outputs of this student have no tokens")
