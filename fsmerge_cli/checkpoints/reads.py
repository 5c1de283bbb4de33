"""`models.sources.N.reads`: what of a source counts, its pooled features, its patch tokens or both."""

from __future__ import annotations

from dataclasses import replace

from fsmerge_cli.architectures.token_outputs import token_layout
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec

WHAT = {"tokens": "its patch tokens count", "both": "its patch tokens count beside its pooled features"}


def with_reads(spec: SourceSpec, source: Source, where: str) -> Source:
    """The source with what `spec.reads` asks for, and a note. Raises SourceError where it has no such thing."""
    reads = spec.reads
    if reads is None or reads == "pooled":
        return source
    if source.family.grid(source.family.skeleton(source.arch)) is None:
        raise SourceError(
            f"{where}: reads={reads} is of vision transformers, which have patch tokens, and this is a network of "
            f"family '{source.family.name}'. Remove models.sources.N.reads."
        )
    if reads == "tokens" and source.head is not None:
        raise SourceError(
            f"{where}: its head reads the pooled features, which reads=tokens leaves out. Pass "
            "models.sources.N.reads=both, or a checkpoint without the head."
        )
    layout = token_layout(source.family, source.arch)
    grid = "" if layout is None else f", {layout.grid[0]} x {layout.grid[1]} of {layout.token_width} units"
    note = f"'{spec.name}': {WHAT[reads]} (reads={reads}){grid}"
    return replace(source, reads=reads, notes=(*source.notes, note))
