"""Texts in files: .txt with one text per line, folders of .txt, CSV, TSV, JSON Lines and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import DataError, reason
from fsmerge_cli.common.foreign_files import UnreadableError, lines_of, read_text
from fsmerge_cli.common.shown import brief, listed, shown
from fsmerge_cli.data.text.conll import sentences
from fsmerge_cli.data.text.folders import CONLL, PARQUET, SUFFIXES, TABLES, text_files
from fsmerge_cli.data.text.parquet import parquet_rows
from fsmerge_cli.data.text.tokens import Text
from fsmerge_cli.data.text.words import Words

MAX_BYTES = 2**30
"""Largest file that is read."""

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("question", "passage"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
)
WORD_NAMES, TAG_NAMES = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels", "upos")
TEXT_NAMES = ("text", "sentence", "review", "content", "document", "sentence1", "premise", "question", "text_a")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment")
"""Names of columns that are found without being given, in this order."""


@dataclass(frozen=True)
class Row:
    """A text (or a pair), its label as it is written (None: there is none), and where it stands.

    Of a text as its words the label is the tags of these, a tuple.

    guessed: which columns of its file are read and which are not, where there was a choice and nothing was given.
    """

    text: Text
    label: Any
    place: str
    guessed: str = ""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table (None: found, see PAIRS, TEXT_NAMES and LABEL_NAMES)."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


def rows_of(path: Path, columns: Columns) -> list[Row]:
    """All texts of a file or a folder; blank lines of .txt are none. Raises DataError."""
    if path.is_dir():
        return list(_of_folder(path, columns))
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{shown(path)}: texts are read from {listed(SUFFIXES)}, or a folder of .txt files.")
    if path.suffix.lower() == PARQUET:
        return list(table_rows(str(path), parquet_rows(path), columns))
    content = _content(path)
    if path.suffix.lower() == ".txt":
        return [
            Row(line, None, f"{path}:{number}") for number, line in enumerate(lines_of(content), 1) if line.strip()
        ]
    if path.suffix.lower() == CONLL:
        found_words = sentences(path, lines_of(content))
        return [Row(Words(words), tags, f"{path}:{first}") for first, words, tags in found_words]
    found = _table(path, content) if path.suffix.lower() in TABLES else _objects(path, content)
    return list(table_rows(str(path), found, columns))


def has_text(row: Row) -> bool:
    """Whether a row is more than white space."""
    return any(part.strip() for part in parts_of(row.text))


def parts_of(text: Text) -> Sequence[str]:
    """The strings that a text consists of."""
    return [text] if isinstance(text, str) else text.words if isinstance(text, Words) else text


def _content(path: Path) -> str:
    try:
        return read_text(path, MAX_BYTES)
    except UnreadableError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.why}. {error.remedy}".rstrip()) from None


def _of_folder(folder: Path, columns: Columns) -> Iterator[Row]:
    """One text per .txt file, where folders directly below are labels; other files as by themselves."""
    for path in text_files(folder):
        inside = path.relative_to(folder).parts
        if path.suffix.lower() == ".txt":
            yield Row(_content(path), inside[0] if len(inside) > 1 else None, str(path))
        else:
            yield from rows_of(path, columns)


def _table(path: Path, content: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Line and cells by column of every row. In .tsv quotes are characters like others, and no cell has a tab."""
    csv.field_size_limit(MAX_BYTES)  # a cell may be a whole document
    source, quotes = io.StringIO(content, newline=""), path.suffix.lower() != ".tsv"
    reader = csv.reader(
        source,
        delimiter=_delimiter(path, content),
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        names = [name.strip() for name in next((row for row in reader if row), [])]
        found = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        why = f"{reason(error)}. A cell with a quote stands in quotes, and the quote is doubled"
        raise DataError(f"{shown(path)}, line {reader.line_num}: {why}. Repair the file.") from None
    if repeated := sorted(name for name, times in Counter(names).items() if times > 1):
        raise DataError(
            f"{shown(path)}: its first line names {listed(repeated)} more than once, and only one of these "
            "columns would be read. Rename or remove the others."
        )
    for line, row in found:
        if len(row) != len(names):
            raise DataError(
                f"{shown(path)}, line {line}: there are {len(row)} cells, and the first line names {len(names)} "
                f"columns ({listed(names)}). Repair the file: a cell with a delimiter stands in quotes in .csv."
            )
    return [(line, dict(zip(names, row))) for line, row in found]


def _delimiter(path: Path, content: str) -> str:
    """That of the suffix; of .csv the semicolon or tab of the first line if this has no comma."""
    first = content.lstrip("\r\n").partition("\n")[0]
    own = TABLES[path.suffix.lower()]
    others = ";\t" if path.suffix.lower() == ".csv" and own not in first else ""
    return next((other for other in others if other in first), own)


def _columns(row: Mapping[str, Any]) -> list[str]:
    """The keys of texts and labels that hold lists, in the one object of a file of columns; a record has none.

    A key of words or tags makes a record: a text as its words.
    """
    if ({*WORD_NAMES, *TAG_NAMES} - {*LABEL_NAMES}) & {*row}:
        return []
    return [name for name in row if name in (*TEXT_NAMES, *LABEL_NAMES) and isinstance(row[name], list)]


def _objects(path: Path, content: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Line and object of every row of JSON Lines; a .json file may be one list."""
    found: list[tuple[int, Any]] = []
    number = 1
    try:
        if path.suffix.lower() == ".json" and content.lstrip().startswith("["):
            found = list(enumerate(json.loads(content, object_pairs_hook=_object), 1))
        else:
            for number, line in enumerate(lines_of(content), 1):
                if line.strip():
                    found.append((number, json.loads(line, object_pairs_hook=_object)))
    except _RepeatedKeyError as error:
        raise DataError(
            f"{shown(path)}, line {number}: the key {brief(str(error))} stands there twice. Repair the file."
        ) from None
    except (ValueError, RecursionError):
        raise DataError(
            f"{shown(path)}, line {number}: this is no JSON object per line. Repair the file."
        ) from None
    wrong = next((entry for entry in found if not isinstance(entry[1], dict)), None)
    if wrong:
        raise DataError(f"{shown(path)}, line {wrong[0]}: should be an object, is {brief(wrong[1])}.")
    one = path.suffix.lower() == ".json" and len(found) == 1 and not content.lstrip().startswith("[")
    columns = _columns(found[0][1]) if one else []
    if {*columns} & {*TEXT_NAMES}:
        raise DataError(
            f"{shown(path)} holds columns ({listed(columns)}: a list of all values each), which would be read as "
            "the words of one text. Save a list of objects, or one object per line."
        )
    return found


class _RepeatedKeyError(Exception):
    """A key of an object of JSON that is there twice, of which Python keeps the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError(next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1))
    return found


def table_rows(where: str, found: Sequence[tuple[int, Mapping[str, Any]]], columns: Columns) -> Iterator[Row]:
    """The rows of a table or of objects, with their numbers. where: prefix of messages. Raises DataError."""
    names = list(dict.fromkeys(name for _, row in found for name in row if name is not None))
    if not found:
        return
    first, second = _pair(names, columns)
    text = _column(where, names, columns.text or first, (*TEXT_NAMES, *WORD_NAMES), "text")
    pair = _column(where, names, columns.pair or second, (), "pair")
    of_words = text is not None and any(isinstance(row.get(text), list | tuple) for _, row in found)
    label = _column(where, names, columns.label, TAG_NAMES if of_words else LABEL_NAMES, "label")
    if text is None:
        if len(names) != 1:
            raise DataError(
                f"{shown(where)}: none of its columns is known to hold the texts: {listed(names, 'no columns')}. "
                "Pass data.text_column=NAME."
            )
        text = names[0]
    guessed = _guessed(names, (text, pair, label), columns)
    if of_words and pair is None:
        yield from (
            _tagged(row.get(text), row.get(label or ""), f"{where}:{line}", guessed) for line, row in found
        )
        return
    for line, row in found:
        one, other = row.get(text), row.get(pair) if pair else None
        for value in (one, other):
            if value is not None and not isinstance(value, str):
                raise DataError(f"{shown(where)}, line {line}: a text should be a string, is {brief(value)}.")
        own = one or ""
        content: Text = own if pair is None else (own, other or "")
        kind = row.get(label) if label else None
        yield Row(content, kind.strip() if isinstance(kind, str) else kind, f"{where}:{line}", guessed)


def _tagged(words: Any, tags: Any, place: str, guessed: str) -> Row:
    """A row of words with their tags. Raises DataError."""
    words, tags = () if words is None else words, () if tags is None else tags
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{shown(place)}: the words should be a list of strings, are {brief(words)}.")
    if not isinstance(tags, list | tuple) or not all(tag is None or isinstance(tag, str | int) for tag in tags):
        raise DataError(
            f"{shown(place)}: the tags should be a list of names or whole numbers, one per word, are "
            f"{brief(tags)}."
        )
    return Row(Words(tuple(words)), tuple(tags) or None, place, guessed)


def _guessed(names: Sequence[str], used: Sequence[str | None], columns: Columns) -> str:
    """What a note says of the columns; empty if none is left over, or if they were given."""
    unused = [name for name in names if name not in used]
    if len(names) == 1 and names[0].lower() not in TEXT_NAMES and columns.text is None:
        return f"'{names[0]}' is taken as the name of the only column, not as a text (data.text_column)"
    if not unused or columns.text is not None:
        return ""
    texts = " and ".join(f"'{name}'" for name in used[:2] if name is not None)
    labels = "no labels" if used[2] is None else f"labels from '{used[2]}'"
    return f"texts from {texts}, {labels}; not read: {listed(unused)} (data.text_column, data.label_column)"


def _pair(names: Sequence[str], columns: Columns) -> tuple[str | None, str | None]:
    """The columns of two texts that are read together, if both names are known; (None, None) otherwise."""
    lower = {name.lower(): name for name in names}
    for first, second in PAIRS:
        if first in lower and second in lower and columns.text in (None, lower[first]) and columns.pair is None:
            return lower[first], lower[second]
    return None, None


def _column(where: str, names: Sequence[str], given: str | None, known: Sequence[str], key: str) -> str | None:
    """The name of a column: the given one, else the first known one that there is."""
    if given is not None:
        if given not in names:
            raise DataError(
                f"{shown(where)} has no column '{given}' (data.{key}_column). It has "
                f"{listed(names, 'no columns')}."
            )
        return given
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), None)
