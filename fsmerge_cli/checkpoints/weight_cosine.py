"""Cosine similarity of the weights of two files, which indicates a shared pretrained initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.architectures.ports import Mapped, Role
from fsmerge_cli.checkpoints.headers import SourceHeaders
from fsmerge_cli.checkpoints.open import stored_names
from fsmerge_cli.models.plan import Plan

BUDGET = 1_000_000
"""Bytes of weights per source that are read for the similarity."""

SLICES = 16
"""Number of tensors from which they are read."""


def weight_similarity(opened: Sequence[SourceHeaders], plan: Plan) -> tuple[float, ...] | None:
    """Cosine of the weights of source 2, 3, ... with those of source 1: mean over slices of same-shaped matrices.

    Reads at most BUDGET bytes per source, spread over SLICES tensors. None if a source has no file, or no matrix
    with the shape of source 1's.
    """
    files = [own.found.weights for own in opened if own.found.weights is not None]
    weights, stored = [own.source.weights for own in opened], [stored_names(own.spec, own.found) for own in opened]
    names = [name for name, role in plan.roles.items() if _matrix(role, [w[name] for w in weights])]
    names = [name for name in names if all(name in own for own in stored)]
    chosen = names[:: max(1, -(-len(names) // SLICES))]
    if not chosen or len(files) < len(opened):
        return None
    budget = BUDGET // len(chosen)
    with ExitStack() as stack:
        readers = [file.slices(stack) for file in files]
        pieces = [[_slice(read(own[name]), budget) for name in chosen] for read, own in zip(readers, stored)]
    return tuple(
        sum(float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(pieces[0], other)) / len(chosen)
        for other in pieces[1:]
    )


def _matrix(role: Role, tensors: Sequence[Tensor]) -> bool:
    mapped = isinstance(role, Mapped) and role.read is not None and tensors[0].ndim == 2
    return mapped and len({t.shape for t in tensors}) == 1


def _slice(lazy: Any, budget: int) -> Tensor:
    """The first rows of a tensor (or part of one row), at most `budget` bytes, flattened, in fp32."""
    count = budget // 8  # no data type of a checkpoint is wider
    cols = min((lazy.shape if isinstance(lazy, Tensor) else lazy.get_shape())[-1], count)
    taken: Tensor = lazy[: count // cols, :cols]
    return taken.flatten().float()
