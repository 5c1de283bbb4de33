"""Variances of a source's features and tokens, by which its losses are divided."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fsmerge_cli.common.hardware import double
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.token_targets import TokenTargets


def variances(parts: Iterable[Tensor], source: Source) -> tuple[float, TokenTargets | None]:
    """Variance of the features, and where the tokens count the targets with that of the tokens, in one pass."""
    pooled, tokens, layout = _Variance(), _Variance(), source.layout
    for part in parts:
        pooled.add(part if layout is None else layout.features(part))
        if layout is not None:
            tokens.add(layout.tokens(part).flatten(0, 1))
    if layout is None:
        return pooled.value, None
    return pooled.value, TokenTargets(layout, tokens.value, source.reads == "both")


class _Variance:
    """Variance over rows, mean over units, of parts [m, d]; streamed in fp64, each part around its own mean."""

    def __init__(self) -> None:
        self._count, self._mean, self._square = 0, *(torch.zeros((), dtype=torch.float64) for _ in range(2))

    def add(self, part: Tensor) -> None:
        """Add the rows of a part."""
        if not len(part):
            return
        x = double(part)
        own, total = x.mean(0), self._count + len(x)
        self._square = (
            self._square + (x - own).square().sum(0) + (own - self._mean).square() * (self._count * len(x) / total)
        )
        self._mean = self._mean + (own - self._mean) * (len(x) / total)
        self._count = total

    @property
    def value(self) -> float:
        """1.0 for constant features, because the loss is divided by it."""
        variance = (self._square / max(self._count, 1)).mean().item()
        return variance if variance > 0 else 1.0
