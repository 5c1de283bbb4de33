"""Sources that are the same network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fsmerge_cli.models.source import Source


def duplicate_notes(sources: Sequence[Source]) -> list[str]:
    """Notes on sources of identical weights, which add nothing to a merge unless heads or embeddings differ."""
    notes = []
    for i, source in enumerate(sources):
        other = next((own for own in sources[:i] if _same_weights(source, own)), None)
        if other is None:
            continue
        if _differ(source, other):
            notes.append(
                f"'{source.name}' and '{other.name}' are tasks of one model: its weights are counted once per task"
            )
        else:
            notes.append(
                f"'{source.name}' has the same weights as '{other.name}'; check models.sources.N.checkpoint"
            )
    return notes


def _same_weights(source: Source, other: Source) -> bool:
    """Whether two sources have the same backbone; layers behind it are part of the digest of a source."""
    if not (source.dense and other.dense):
        return source.sha256 == other.sha256
    mine, theirs = source.weights, other.weights
    return mine.keys() == theirs.keys() and all(torch.equal(own, theirs[name]) for name, own in mine.items())


def _differ(source: Source, other: Source) -> bool:
    """Whether two sources of one backbone have heads of their own, or layers behind their features."""
    if source.head is not None and other.head is not None:
        return not torch.equal(source.head.weight, other.head.weight)
    if [layer.activation for layer in source.dense] != [layer.activation for layer in other.dense]:
        return True
    mine, theirs = ([tensor for layer in own.dense for tensor in layer.tensors] for own in (source, other))
    return len(mine) != len(theirs) or not all(map(torch.equal, mine, theirs))
