"""Tasks of the entries of `models.sources`: one per head of a merged folder, with label names resolved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from fsmerge_cli.checkpoints.embedded import with_label_set
from fsmerge_cli.checkpoints.files import model_in, read_tensors
from fsmerge_cli.checkpoints.heads import listed_heads
from fsmerge_cli.common.errors import ConfigError, SourceError, reason
from fsmerge_cli.common.options import build
from fsmerge_cli.data import DataConfig, Task
from fsmerge_cli.models.source_spec import SourceSpec

FILES = (".txt", ".json")
"""Suffixes of files with label names."""

DATA = "data"
"""Value of `labels` that selects the names of the class folders."""


def tasks(spec: SourceSpec, number: int, data: DataConfig | None = None) -> list[SourceSpec]:
    """The tasks of one entry, with labels as lists. number: index of the entry. Raises ConfigError, DataError.

    A folder with several heads is one source per head, unless the entry selects one. These sources share the
    backbone (each memory-maps the same file) and have the names of the heads.
    """
    names = [] if spec.head is not None or spec.recipe is not None else _heads(spec)
    if len(names) < 2:
        return [with_label_names(spec, data)]
    if spec.labels is not None:
        raise ConfigError(
            f"source '{spec.name}': labels are given, but {spec.checkpoint} has {len(names)} heads with their own "
            f"labels: {', '.join(names)}. Remove models.sources.{number}.labels, or choose one head with "
            f"models.sources.{number}.head=NAME"
        )
    plain = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return [build(SourceSpec, {**plain, "name": n, "head": n}, f"models.sources.{number}") for n in names]


def _heads(spec: SourceSpec) -> Sequence[str]:
    """Names of all heads of a folder; empty if it cannot be read, which is reported on loading."""
    try:
        file = model_in(Path(spec.checkpoint or "").expanduser()) / "heads.safetensors"
        if spec.checkpoint is None or not file.is_file():
            return []
        return listed_heads(*read_tensors(file, "", headers=True))
    except (SourceError, OSError, ValueError, RuntimeError):
        return []


def with_label_names(spec: SourceSpec, data: DataConfig | None = None) -> SourceSpec:
    """The same source with its labels as a list. Raises ConfigError, DataError."""
    if not isinstance(spec.labels, str):
        return spec
    if spec.labels == DATA:
        return replace(spec, labels=_of_data(spec, data))
    if Path(spec.labels).suffix.lower() in FILES:
        return replace(spec, labels=read_labels(spec.labels, f"source '{spec.name}'"))
    return with_label_set(spec)


def _of_data(spec: SourceSpec, data: DataConfig | None) -> tuple[str, ...]:
    found = data.classes(Task(spec.name, None)) if data is not None else None
    if not found:
        raise ConfigError(
            f"source '{spec.name}': labels=data uses the names of class folders, but "
            + ("no data set is given." if data is None else f"data={data.name} has none for this task.")
            + " Pass data=folder with class folders, or a list: models.sources.N.labels=[...]"
        )
    return found


def read_labels(text: str, where: str) -> tuple[str, ...]:
    """Label names from a file: .txt, one per line; .json, a list or an object by row. Raises ConfigError."""
    path = Path(text).expanduser()
    try:
        content = path.read_text(encoding="utf-8-sig")
        found: object = json.loads(content) if path.suffix.lower() == ".json" else content.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: the labels in {text[:200]} cannot be read ({reason(error)}). Pass another file, or a list: "
            "models.sources.N.labels=[...]"
        ) from None
    if isinstance(found, dict) and all(str(i) in found for i in range(len(found))):
        found = [found[str(i)] for i in range(len(found))]
    names = [name.strip() for name in found if isinstance(name, str)] if isinstance(found, list) else []
    while names and not names[-1]:
        names.pop()
    if not names or not isinstance(found, list) or not all(names) or not all(isinstance(n, str) for n in found):
        raise ConfigError(
            f"{where}: {text[:200]} should contain label names, one per line (.txt) or as a list (.json), none of "
            "them empty."
        )
    return tuple(names)
