"""`load_source`: one trained model as a value, from anything that an entry of `models.sources` can refer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from fsmerge_cli.checkpoints.embedded import ensure_trained
from fsmerge_cli.checkpoints.headers import depths_of
from fsmerge_cli.checkpoints.load import check_weights, load
from fsmerge_cli.checkpoints.tasks import tasks
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import build
from fsmerge_cli.common.progress import Progress, silent
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec


def load_source(
    source: str | Path | nn.Module | SourceSpec | Mapping[str, Any], *, progress: Progress = silent, **keys: Any
) -> Source:
    """Read one trained model: its architecture, its weights under fsmerge's names, its head with the label names.

    source: a checkpoint (folder or file), a torch module, or an entry with the keys of `models.sources`. keys:
    further keys of the entry (name, arch, head, labels, mean, std, ...); the default name is `source`. An entry
    with a recipe is trained if it is not in the cache. The backbone of the result reads pixels in 0..1: mean and
    std are folded into its weights. The checkpoint is not changed and no code in it is run.

    Raises SourceError if it cannot be read or its tensors do not match its architecture, ConfigError if a key is
    wrong or the folder holds several tasks.
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
            f"{given['checkpoint']} has {len(found)} heads: {', '.join(spec.name for spec in found)}. Choose one "
            "with load_source(..., head=NAME); load_merged reads all of them."
        )
    loaded = load(ensure_trained(found[0], progress))
    check_weights(loaded)
    return loaded


def load_all(specs: Sequence[SourceSpec], progress: Progress) -> list[Source]:
    """All sources in order. Checkpoints are read first, so that a wrong path is reported before any training."""
    specs = depths_of(specs)
    ready = {i: load(spec) for i, spec in enumerate(specs) if spec.checkpoint is not None}
    return [ready.get(i) or load(ensure_trained(spec, progress)) for i, spec in enumerate(specs)]
