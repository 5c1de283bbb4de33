"""How like the weights of two files are: a sign of a common pretrained initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fsmerge_cli.architectures.ports import Mapped, Role
from fsmerge_cli.checkpoints.headers import Opened, weights_path
from fsmerge_cli.checkpoints.open import stored_names
from fsmerge_cli.common.safe_pickle import read_pickled
from fsmerge_cli.models.plan import Plan

BUDGET = 1_000_000
"""Bytes of weights per source that the similarity reads."""


SLICES = 16
"""Over how many tensors they are spread."""


def similarity(opened: Sequence[Opened], plan: Plan) -> tuple[float, ...] | None:
    """Cosine of every further source's weights to source 1's: mean over slices of matrices of one shape.

    At most BUDGET bytes per source, spread over SLICES tensors. None where a source has no file, or no matrix of
    source 1's shape.
    """
    files = [file for own in opened if (file := weights_path(own.spec)) is not None]
    weights, stored = [own.source.weights for own in opened], [stored_names(own.spec, own.found) for own in opened]
    names = [name for name, role in plan.roles.items() if _matrix(role, [w[name] for w in weights])]
    names = [name for name in names if all(name in own for own in stored)]
    chosen = names[:: max(1, -(-len(names) // SLICES))]
    if not chosen or len(files) < len(opened):
        return None
    budget = BUDGET // len(chosen)
    with ExitStack() as stack:
        readers = [_reader(file, stack) for file in files]
        pieces = [[_slice(read(own[name]), budget) for name in chosen] for read, own in zip(readers, stored)]
    return tuple(
        sum(float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(pieces[0], other)) / len(chosen)
        for other in pieces[1:]
    )


def _matrix(role: Role, tensors: Sequence[Tensor]) -> bool:
    mapped = isinstance(role, Mapped) and role.read is not None and tensors[0].ndim == 2
    return mapped and len({t.shape for t in tensors}) == 1


def _reader(file: Path, stack: ExitStack) -> Callable[[str], Any]:
    """Tensors of a file by name, to be sliced; a legacy file has no header, so all of it is read."""
    if file.suffix == ".safetensors":
        return stack.enter_context(safe_open(file, framework="pt")).get_slice  # type: ignore[no-any-return]
    return read_pickled(file, str(file)).__getitem__


def _slice(lazy: Any, budget: int) -> Tensor:
    """The first rows of a tensor, no more than `budget` bytes of them (of a wider row a part), in fp32."""
    numbers = budget // 8  # no type of a checkpoint is wider
    cols = min((lazy.shape if isinstance(lazy, Tensor) else lazy.get_shape())[-1], numbers)
    taken: Tensor = lazy[: numbers // cols, :cols]
    return taken.flatten().float()
