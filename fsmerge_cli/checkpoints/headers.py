"""Sources without their weights, read from the headers of their files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fsmerge_cli.checkpoints.embedded import cached_folder, is_embedded
from fsmerge_cli.checkpoints.load import assemble
from fsmerge_cli.checkpoints.matched_depth import with_depths
from fsmerge_cli.checkpoints.open import Checkpoint, expected_checkpoint, open_checkpoint
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec


@dataclass(frozen=True)
class SourceHeaders:
    """A source with weights on the `meta` device, and the checkpoint headers that it was built from."""

    spec: SourceSpec
    found: Checkpoint
    source: Source


def read_headers(specs: Sequence[SourceSpec]) -> list[SourceHeaders]:
    """All sources with their weights on the `meta` device; nothing is trained, downloaded or hashed.

    Raises SourceError with the messages of all sources that cannot be read.
    """
    opened, messages = [], []
    for i, spec in enumerate(depths_of(specs)):
        try:
            opened.append(open_headers(spec))
        except SourceError as error:  # an override in quotes is meant to be pasted
            messages.append(str(error).replace("'models.sources.N.", f"'models.sources.{i}."))
    if messages:
        raise SourceError("\n".join(messages))
    return opened


def depths_of(specs: Sequence[SourceSpec]) -> list[SourceSpec]:
    """The same entries, with a number of blocks where `depth` is `match`."""
    return with_depths(specs, lambda spec: open_headers(spec, skip_head=True).source)


def open_headers(spec: SourceSpec, skip_head: bool = False) -> SourceHeaders:
    """The headers of one source; an embedded source is read from the cache if it is there and not damaged.

    skip_head: the head is not read. Raises SourceError.
    """
    if not is_embedded(spec):
        found = open_checkpoint(spec, headers=True)
        return SourceHeaders(spec, found, assemble(spec, found, skip_head))
    with suppress(SourceError):
        if (folder := cached_folder(spec)) is not None:
            kept = replace(spec, checkpoint=str(folder))
            found = replace(open_checkpoint(kept, headers=True), origin="cached")
            return SourceHeaders(kept, found, assemble(kept, found, skip_head))
    found = expected_checkpoint(spec)
    return SourceHeaders(spec, found, assemble(spec, found, skip_head))
