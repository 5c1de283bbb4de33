"""Sources without their weights: what the headers of their files state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fsmerge_cli.checkpoints.embedded import cached, declared
from fsmerge_cli.checkpoints.files import model_in, weights_file
from fsmerge_cli.checkpoints.load import assemble
from fsmerge_cli.checkpoints.open import Checkpoint, expected, open_checkpoint
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec


@dataclass(frozen=True)
class Opened:
    """A source without its weights, and the headers it was made from."""

    spec: SourceSpec
    found: Checkpoint
    source: Source


def headers(specs: Sequence[SourceSpec]) -> list[Opened]:
    """All sources with their weights on the `meta` device; nothing is trained, downloaded or hashed.

    Raises SourceError with the messages of all that cannot be read.
    """
    opened, messages = [], []
    for spec in specs:
        try:
            opened.append(_open(spec))
        except SourceError as error:
            messages.append(str(error))
    if messages:
        raise SourceError("\n".join(messages))
    return opened


def _open(spec: SourceSpec) -> Opened:
    """An embedded source is looked at in the cache where it is there; a damaged entry is trained again."""
    if not declared(spec):
        found = open_checkpoint(spec, headers=True)
        return Opened(spec, found, assemble(spec, found))
    with suppress(SourceError):
        if (folder := cached(spec)) is not None:
            kept = replace(spec, checkpoint=str(folder))
            found = replace(open_checkpoint(kept, headers=True), origin="cached")
            return Opened(kept, found, assemble(kept, found))
    found = expected(spec)
    return Opened(spec, found, assemble(spec, found))


def weights_path(spec: SourceSpec) -> Path | None:
    """The file of weights of an entry; None where it names none."""
    if spec.checkpoint is None:
        return None
    return weights_file(model_in(Path(spec.checkpoint).expanduser()))
