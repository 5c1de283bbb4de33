"""`load_source`: one trained model as a value, from whatever an entry of `models.sources` may name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from fsmerge_cli.checkpoints.embedded import materialise
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.tasks import tasks
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import build
from fsmerge_cli.common.progress import Progress, silent
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec


def load_source(
    source: str | Path | nn.Module | SourceSpec | Mapping[str, Any], *, progress: Progress = silent, **keys: Any
) -> Source:
    """Read one trained model: its architecture, its weights by our names, its head with the label names.

    source: a checkpoint (folder or file), a torch module, or an entry with the keys of `models.sources`. keys:
    more keys of the entry (name, arch, head, labels, mean, std, ...); without a name it is called `source`. An
    entry with a recipe is trained where the cache does not have it. The backbone of the result reads pixels in
    0..1: mean and deviation are folded into its weights. Nothing of the checkpoint is changed and no code of it is
    run.

    Raises SourceError where it cannot be read, ConfigError where a key is wrong or the folder holds several tasks.
    """
    given: dict[str, Any] = {"name": "source"}
    if isinstance(source, SourceSpec):
        given |= {field.name: getattr(source, field.name) for field in fields(source)}
    elif isinstance(source, Mapping):
        given |= source
    elif isinstance(source, nn.Module):
        given["module"] = source
    else:
        given["checkpoint"] = str(source)
    found = tasks(build(SourceSpec, {**given, **keys}, "source"), 0)
    if len(found) > 1:
        raise ConfigError(
            f"{given['checkpoint']} has {len(found)} heads: {', '.join(spec.name for spec in found)}. Say which "
            "one: load_source(..., head=NAME); load_merged reads all of them."
        )
    return load(materialise(found[0], progress))


def load_all(specs: Sequence[SourceSpec], progress: Progress) -> list[Source]:
    """All sources in order; those with a checkpoint first, so that a wrong path is said before any training."""
    ready = {i: load(spec) for i, spec in enumerate(specs) if spec.checkpoint is not None}
    return [ready.get(i) or load(materialise(spec, progress)) for i, spec in enumerate(specs)]
