"""Sentences of CoNLL files: a word per line, its tag in the last column, a blank line behind every sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.shown import shown

COMMENT = re.compile(r"#(begin|end) |# \w+ =")
"""Lines of CoNLL-2012 and of CoNLL-U that are no words."""


def sentences(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    """First line, words and tags of every sentence. Raises DataError for lines that are no word and its tag."""
    found: list[tuple[str, str]] = []
    first, columns = 1, 0
    for number, line in enumerate([*lines, ""], 1):
        cells = line.split()
        if len(cells) == 1:
            raise DataError(
                f"{shown(path)}, line {number}: there is one column, and a line should be a word and its "
                "tag, with white space between. Repair the file."
            )
        if COMMENT.match(line) or (not cells and columns > 2 and _numbered(found)):
            raise DataError(
                f"{shown(path)}, line {number}: this looks like CoNLL-U or CoNLL-2012, whose first column is no "
                "word. Write a word per line, its tag last, and a blank line behind every sentence."
            )
        columns = max(columns, len(cells))
        if cells and cells[0] != "-DOCSTART-":
            first = first if found else number
            found.append((cells[0], cells[-1]))
        elif found:
            yield first, tuple(word for word, _ in found), tuple(tag for _, tag in found)
            found = []


def _numbered(rows: Sequence[tuple[str, str]]) -> bool:
    """Whether the first column counts the words."""
    return len(rows) > 1 and all(cell == str(place) for place, (cell, _) in enumerate(rows, 1))
