"""Texts in files: .txt with one text per line, folders of .txt, CSV, TSV and JSON Lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import DataError, reason
from fsmerge_cli.common.foreign_files import UnreadableError, read_text
from fsmerge_cli.common.shown import brief, listed, shown
from fsmerge_cli.data.text.tokens import Text

MAX_BYTES = 2**30
"""Largest file that is read."""

TABLES = {".csv": ",", ".tsv": "\t"}
OBJECTS = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".txt", *TABLES, *OBJECTS)

TEXT_NAMES = ("text", "sentence", "review", "content", "document", "sentence1", "premise", "question", "text_a")
PAIR_NAMES = ("sentence2", "hypothesis", "text_b", "text_pair")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment")
"""Names of columns that are found without being given, in this order."""


@dataclass(frozen=True)
class Row:
    """A text (or a pair), its label as it is written (None: there is none), and where it stands."""

    text: Text
    label: Any
    place: str


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table (None: found, see TEXT_NAMES, PAIR_NAMES and LABEL_NAMES)."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


def is_text_file(path: Path) -> bool:
    """Whether a file can be read as texts, by its suffix."""
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def rows_of(path: Path, columns: Columns) -> list[Row]:
    """All texts of a file or a folder, those without content left out. Raises DataError."""
    if path.is_dir():
        return [row for row in _of_folder(path) if _has_text(row)]
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{shown(path)}: texts are read from {listed(SUFFIXES)}, or a folder of .txt files.")
    content = _content(path)
    if path.suffix.lower() == ".txt":
        lines = enumerate(content.splitlines(), 1)
        return [Row(line, None, f"{path}:{number}") for number, line in lines if line.strip()]
    found = _table(path, content) if path.suffix.lower() in TABLES else _objects(path, content)
    return [row for row in _rows(path, found, columns) if _has_text(row)]


def _has_text(row: Row) -> bool:
    return any(part.strip() for part in ([row.text] if isinstance(row.text, str) else row.text))


def _content(path: Path) -> str:
    try:
        return read_text(path, MAX_BYTES)
    except UnreadableError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.why}. {error.remedy}".rstrip()) from None


def _of_folder(folder: Path) -> Iterator[Row]:
    """One text per .txt file; folders directly below are labels."""
    for path in sorted(folder.rglob("*.txt")):
        inside = path.relative_to(folder).parts
        if not any(part.startswith(".") for part in inside):
            yield Row(_content(path), inside[0] if len(inside) > 1 else None, str(path))


def _table(path: Path, content: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Line and cells by column of every row."""
    reader = csv.DictReader(io.StringIO(content), delimiter=TABLES[path.suffix.lower()])
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{shown(path)}, line {reader.line_num}: {reason(error)}. Repair the file.") from None


def _objects(path: Path, content: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Line and object of every row of JSON Lines; a .json file may be one list."""
    found: list[tuple[int, Any]] = []
    try:
        if path.suffix.lower() == ".json" and content.lstrip().startswith("["):
            found = list(enumerate(json.loads(content), 1))
        else:
            for number, line in enumerate(content.splitlines(), 1):
                if line.strip():
                    found.append((number, json.loads(line)))
    except (ValueError, RecursionError):
        where = f", line {len(content.splitlines()[: len(found)]) + 1}"
        raise DataError(f"{shown(path)}{where}: this is no JSON object per line. Repair the file.") from None
    wrong = next((entry for entry in found if not isinstance(entry[1], dict)), None)
    if wrong:
        raise DataError(f"{shown(path)}, line {wrong[0]}: should be an object, is {brief(wrong[1])}.")
    return found


def _rows(path: Path, found: Sequence[tuple[int, Mapping[str, Any]]], columns: Columns) -> Iterator[Row]:
    names = list(dict.fromkeys(name for _, row in found for name in row if name is not None))
    text = _column(path, names, columns.text, TEXT_NAMES, "text")
    pair = _column(path, names, columns.pair, PAIR_NAMES, "pair")
    label = _column(path, names, columns.label, LABEL_NAMES, "label")
    if text is None:
        if len(names) != 1:
            raise DataError(
                f"{shown(path)}: none of its columns is known to hold the texts: {listed(names, 'no columns')}. "
                "Pass data.text_column=NAME."
            )
        text = names[0]
    for line, row in found:
        first, second = row.get(text), row.get(pair) if pair else None
        for value in (first, second):
            if value is not None and not isinstance(value, str):
                raise DataError(f"{shown(path)}, line {line}: a text should be a string, is {brief(value)}.")
        own = first or ""
        content: Text = own if pair is None else (own, second or "")
        yield Row(content, row.get(label) if label else None, f"{path}:{line}")


def _column(path: Path, names: Sequence[str], given: str | None, known: Sequence[str], key: str) -> str | None:
    """The name of a column: the given one, else the first known one that there is."""
    if given is not None:
        if given not in names:
            raise DataError(
                f"{shown(path)} has no column '{given}' (data.{key}_column). It has {listed(names, 'no columns')}."
            )
        return given
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), None)
