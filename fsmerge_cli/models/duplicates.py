"""Sources that are the same network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fsmerge_cli.models.source import Source


def duplicate_notes(sources: Sequence[Source]) -> list[str]:
    """Notes on sources with identical weights, which add nothing to a merge unless their heads differ."""
    first: dict[str, Source] = {}
    notes = []
    for source in sources:
        other = first.setdefault(source.sha256, source)
        if other is source:
            continue
        heads = source.head, other.head
        if heads[0] is not None and heads[1] is not None and not torch.equal(heads[0].weight, heads[1].weight):
            notes.append(
                f"'{source.name}' and '{other.name}' are tasks of one model: its weights are counted once per task"
            )
        else:
            notes.append(
                f"'{source.name}' has the same weights as '{other.name}'; check models.sources.N.checkpoint"
            )
    return notes
