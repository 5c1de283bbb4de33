"""Sources that are the same network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fsmerge_cli.models.source import Source


def duplicate_notes(sources: Sequence[Source]) -> list[str]:
    """Notes on sources of identical weights, which add nothing to a merge unless heads or embeddings differ."""
    first: dict[str, Source] = {}
    notes = []
    for source in sources:
        other = first.setdefault(source.sha256, source)
        if other is source:
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


def _differ(source: Source, other: Source) -> bool:
    """Whether two sources of one backbone have heads of their own, or layers behind their features."""
    mine, theirs = ([layer.weight for layer in own.dense] for own in (source, other))
    if source.head is not None and other.head is not None:
        mine, theirs = [source.head.weight], [other.head.weight]
    return len(mine) != len(theirs) or not all(map(torch.equal, mine, theirs))
