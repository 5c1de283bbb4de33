"""How the sources of a merge read their inputs together, and notes on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fsmerge_cli.models.source import Source


def source_notes(sources: Sequence[Source]) -> list[str]:
    """Notes on how the sources were read, and on sources whose preprocessing differs from that of source 1."""
    first = sources[0]
    prepared = [
        f"images are preprocessed as for '{first.name}'; '{other.name}' was trained with {', '.join(different)}"
        for other in sources[1:]
        if (different := first.preprocessing.differences(other.preprocessing))
    ]
    lengths = {source.name: _longest(source) for source in sources if source.family.kind == "text"}
    if len({*lengths.values()}) > 1:
        prepared.append(
            f"texts are cut to {min(lengths.values())} tokens, the smallest limit of the sources: "
            + ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        )
    return [*prepared, *(note for source in sources for note in source.notes)]


def reading(sources: Sequence[Source]) -> Source:
    """Source 1, as which all sources read; of texts as many tokens as every source takes."""
    first = sources[0]
    if first.family.kind != "text":
        return first
    return replace(first, preprocessing=replace(first.preprocessing, longest=min(map(_longest, sources))))


def _longest(source: Source) -> int:
    return int(min(source.arch.longest, source.preprocessing.longest))
