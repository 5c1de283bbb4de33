"""Tensors of a third-party file under other names, by the table of their layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import shown

PARTS = (("q", "k", "v"), ("gate", "up"))
"""In a table, a target that ends with `#q`, `#k` or `#v` is that third of one tensor; likewise the halves."""


def renamed(keys: Mapping[str, str], tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under the names of a table (pattern of a name -> name); unknown names are kept.

    Raises SourceError for two names of one tensor, and for parts of a tensor that do not fit together.
    """
    named, parts = _by_target(keys, tensors, where)
    for target, pieces in parts.items():
        for whole in PARTS:
            if set(pieces) == set(whole):
                named[target] = joined([pieces[part] for part in whole], target, where)
    return named


def joined(pieces: Sequence[Tensor], target: str, where: str) -> Tensor:
    """The parts of `target`, one below the other. Raises SourceError if they do not fit together."""
    try:
        return torch.cat(list(pieces))
    except (RuntimeError, IndexError):
        shapes = ", ".join(str(list(piece.shape)) for piece in pieces)
        raise SourceError(
            f"{where}: query, key and value of {target} have incompatible shapes ({shapes}). "
            "Download the file again."
        ) from None


def _by_target(
    keys: Mapping[str, str], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Whole tensors under their new names (unknown names are kept), and the parts of others."""
    named: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    known: dict[str, str] = {}
    for name, tensor in tensors.items():
        matches = ((re.fullmatch(pattern, name), target) for pattern, target in keys.items())
        own = next((match.expand(target) for match, target in matches if match), name)
        if (first := known.setdefault(own, name)) != name:
            raise SourceError(
                f"{where}: {shown(first)} and {shown(name)} are two names of one tensor. Save the weights of one "
                "model."
            )
        target, _, part = own.partition("#")
        if part:
            parts.setdefault(target, {})[part] = tensor
        else:
            named[target] = tensor
    return named, parts
