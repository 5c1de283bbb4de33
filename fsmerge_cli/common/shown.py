"""Text of others made safe to show: names of files and classes, labels, notes, messages of libraries.

Whatever is printed, logged or written for a person to read goes through this module.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

FORMULA = ("=", "+", "-", "@")
"""Characters at the start of a cell by which spreadsheets recognise a formula."""


def printable(text: str) -> str:
    r"""`text` with control characters as escapes; line breaks are kept.

    Escaped is all that is invisible or changes what a terminal or a page shows around it: C0 and C1 controls,
    marks of the direction of writing, other separators than the space, lone surrogates.

    >>> printable("fc0" + chr(27) + "[2J")
    'fc0\\x1b[2J'
    """
    kept = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return "".join(kept)


_typed: list[str] = []
"""Parts of the command's arguments that hold a line break, such as the name of a folder; the longest first."""


def remember_typed(arguments: Iterable[str]) -> None:
    """Keep the arguments of the command, for :func:`message`."""
    parts = {part for text in arguments if "\n" in text for part in re.split(r"[/=,:\[\]{}\"']", text)}
    _typed[:] = sorted((part for part in parts if part.strip("\n") and "\n" in part), key=len, reverse=True)


def message(text: str) -> str:
    """As :func:`printable`, with the line breaks of what the user typed as escapes too, wherever it is quoted."""
    for part in _typed:
        text = text.replace(part, shown(part))
    return printable(text)


def shown(text: object) -> str:
    r"""As :func:`printable`, on one line, so that a name cannot look like several lines of output.

    >>> shown("cat\nfsmerge: error: no")
    'cat\\nfsmerge: error: no'
    """
    return printable(str(text)).replace("\n", "\\n")


def shortened(text: str, limit: int = 200) -> str:
    """As :func:`shown`; only the first `limit` characters, with ... where there are more."""
    return shown(text[:limit]) + ("..." if len(text) > limit else "")


def brief(value: object) -> str:
    """A value of a configuration or a file of others as it is written in Python, shortened."""
    return shortened(repr(value))


MAX_NAMES = 100
"""How many names of others a message lists."""


def listed(names: Iterable[str], empty: str = "none", most: int = MAX_NAMES) -> str:
    """Names of others, on one line; of more than `most`, the first and the number of the others."""
    found = [*names]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return (", ".join(map(shown, found[:most])) or empty) + more


def few(names: Iterable[str]) -> str:
    """The first three names, and how many there are besides."""
    return listed(names, most=3)


def json_text(value: object) -> str:
    """Indented, strictly valid JSON (no NaN); letters of all scripts as they are, control characters escaped."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n"


def well_formed(value: Any) -> Any:
    r"""A JSON value whose texts can be written: lone surrogates (bytes of a file name that are no UTF-8) escaped.

    >>> well_formed({"label": chr(0xDCFF), "rows": [1, "a"]})
    {'label': '\\udcff', 'rows': [1, 'a']}
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {well_formed(name): well_formed(entry) for name, entry in value.items()}
    return type(value)(map(well_formed, value)) if isinstance(value, list | tuple) else value


def cell(value: object) -> object:
    """A cell of a CSV file. Text that a spreadsheet would take for a formula gets an apostrophe in front.

    >>> cell("=1+1"), cell(-0.5), cell("low=1")
    ("'=1+1", -0.5, 'low=1')
    """
    if not isinstance(value, str):
        return value
    text = shown(value)
    start = unicodedata.normalize("NFKC", value).lstrip()[:1]  # full-width signs count as well
    return f"'{text}" if start in FORMULA or value[:1] in ("\t", "\r", "\n") else text
