"""The part of a source's targets that are its patch tokens, and its loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fsmerge_cli.architectures.token_outputs import TokenLayout


@dataclass(frozen=True)
class TokenTargets:
    """What the tokens of a source are compared by.

    layout: of the targets of the source. variance: of its tokens on the training images, over images and places,
    mean over units. pooled: whether its pooled features count beside them. whitening: as in `TeacherTargets`.
    """

    layout: TokenLayout
    variance: float
    pooled: bool
    whitening: Tensor | None = None

    def error(self, estimate: Tensor, targets: Tensor) -> Tensor:
        """The relative squared error of tokens [m, T, d], mean over places and units, summed over images."""
        own = self.layout.tokens(targets)
        if self.whitening is not None:
            return ((estimate - own).float() @ self.whitening).square().sum() / (own.shape[1] * own.shape[2])
        return (estimate - own).square().sum() / (own.shape[1] * own.shape[2] * self.variance)

    def combined(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        """The feature loss of the source: the mean of both errors, or that of the tokens.

        Where the pooled features do not count, `pooled` adds its gradient and no value: it is of an estimate from
        detached features, so that the gradient is that of the projector.
        """
        return (pooled + tokens) / 2 if self.pooled else tokens + pooled - pooled.detach()
