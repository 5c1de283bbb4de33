"""Tasks of the entries of `models.sources`: one per head of a merged folder, with label names resolved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from fsmerge_cli.checkpoints.embedded import with_label_set
from fsmerge_cli.checkpoints.files import read_tensors
from fsmerge_cli.checkpoints.heads import listed_heads
from fsmerge_cli.checkpoints.weights import model_in
from fsmerge_cli.common.errors import ConfigError, SourceError, reason
from fsmerge_cli.common.foreign_files import UnreadableError, read_json, read_text
from fsmerge_cli.common.options import build
from fsmerge_cli.common.shown import listed, shortened
from fsmerge_cli.data import DataConfig, Task
from fsmerge_cli.data.matching import alike_note, by_number
from fsmerge_cli.models.source_spec import SourceSpec

FILES = (".txt", ".json")
"""Suffixes of files with label names."""

DATA = "data"
"""Value of `labels` that selects the names of the class folders, in the order of the data set (sorted as text)."""

DATA_NUMERIC = "data_numeric"
"""The same, with names that are numbers sorted as numbers."""


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
            f"labels: {listed(names)}. Remove models.sources.{number}.labels, or choose one head with "
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
    if spec.labels in (DATA, DATA_NUMERIC):
        return replace(spec, labels=_of_data(spec, data))
    if Path(spec.labels).suffix.lower() in FILES:
        return replace(spec, labels=read_labels(spec.labels, f"source '{spec.name}'"))
    return with_label_set(spec)


def _of_data(spec: SourceSpec, data: DataConfig | None) -> tuple[str, ...]:
    found = data.classes(Task(spec.name, None)) if data is not None else None
    if not found:
        raise ConfigError(
            f"source '{spec.name}': labels={spec.labels} uses the names of class folders, but "
            + ("no data set is given." if data is None else f"data={data.name} has none for this task.")
            + " Pass data=folder with class folders, or a list: models.sources.N.labels=[...]"
        )
    if spec.labels == DATA:
        return found
    if words := [name for name in found if not name.isdecimal()]:
        raise ConfigError(
            f"source '{spec.name}': labels={DATA_NUMERIC} sorts class names that are numbers, but '{words[0]}' is "
            f"none. Pass models.sources.N.labels={DATA} to sort them as text, or a list: "
            "models.sources.N.labels=[...]"
        )
    return tuple(by_number(found))


ORDERED = "the rows of its head are taken to be the classes of the data set in their order"


def notes_of_heads(notes: Iterable[str], without: Iterable[str]) -> list[str]:
    """The notes, but for those of `order_note` on the sources `without` a head, whose labels have no order."""
    starts = tuple(f"'{name}': {ORDERED} " for name in without)
    return [note for note in notes if not note.startswith(starts)]


def order_note(given: SourceSpec, labels: Sequence[str]) -> str | None:
    """A note where the order of the labels is a guess: that of a data set. given: the entry as written."""
    if given.labels not in (DATA, DATA_NUMERIC):
        return None
    few = ", ".join(f"{row}: '{name}'" for row, name in enumerate(labels[:3])) + (", ..." if labels[3:] else "")
    note = f"'{given.name}': {ORDERED} ({few})"
    note += "".join(f"; {text}" for text in alike_note(given.name, labels))
    other, key = (by_number(labels), DATA_NUMERIC) if given.labels == DATA else (sorted(labels), DATA)
    if [*labels] == other or not all(label.isdecimal() for label in labels):
        return note
    as_what = "numbers" if key == DATA_NUMERIC else "text, as torchvision's ImageFolder does"
    return f"{note}. If it was trained with them sorted as {as_what}, pass models.sources.N.labels={key}"


def read_labels(text: str, where: str) -> tuple[str, ...]:
    """Label names from a file: .txt, one per line; .json, a list or an object by row. Raises ConfigError."""
    try:
        path = Path(text).expanduser()
        found = read_json(path) if path.suffix.lower() == ".json" else read_text(path).splitlines()
    except (UnreadableError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        why = error.why if isinstance(error, UnreadableError) else reason(error)
        remedy = error.remedy if isinstance(error, UnreadableError) else ""
        remedy = remedy or "Pass another file, or a list: models.sources.N.labels=[...]"
        raise ConfigError(f"{where}: the labels in {shortened(text)} cannot be read ({why}). {remedy}") from None
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
