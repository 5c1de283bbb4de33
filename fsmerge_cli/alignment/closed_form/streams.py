"""The residual streams of all networks at one depth, in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Batches = list[Tensor]
"""A stream [n, T, d] in parts, in host memory."""

Further = Sequence[Tensor]
"""What a block reads beside the stream, for one part."""


@dataclass
class Streams:
    """The streams of all sources, and that of the merged network, at one depth.

    further: by part (empty: nothing). masks: the tokens of every part that are not padding, [n, T] (None: the
    inputs have none; empty: no part has).
    """

    sources: list[Batches]
    merged: Batches
    further: list[Further] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)

    @property
    def padded(self) -> bool:
        """Whether there is padding."""
        return any(mask is not None for mask in self.masks)

    def beside(self, part: int) -> Further:
        """What a block reads of a part beside the stream."""
        return self.further[part] if self.further else ()

    def used(self, part: int, device: torch.device) -> Tensor | None:
        """The tokens of a part that are not padding."""
        mask = self.masks[part] if self.masks else None
        return None if mask is None else mask.to(device)


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Activations [n, T, d_i] side by side, one row per token."""
    return torch.cat(list(parts), -1).flatten(0, -2)
