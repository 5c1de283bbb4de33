"""`models.sources.N.depth=match`: as many blocks as the deepest source has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import MATCH, SourceSpec


def with_depths(specs: Sequence[SourceSpec], read: Callable[[SourceSpec], Source]) -> list[SourceSpec]:
    """The same entries, with a number in place of `match`. read: the headers of one entry.

    Nothing is read where no entry has `match`. What cannot be read is left out, since it is reported later.
    """
    matched = [spec.depth == MATCH for spec in specs]
    if not any(matched):
        return list(specs)
    depths = []
    for spec, own in zip(specs, matched):
        with suppress(SourceError):
            depths.append(_blocks(read(replace(spec, depth=None) if own else spec)))
    most = max(depths, default=0)
    return [replace(spec, depth=most or None) if own else spec for spec, own in zip(specs, matched)]


def _blocks(source: Source) -> int:
    return len(source.family.blocks(source.family.skeleton(source.arch)))
