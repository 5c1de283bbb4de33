"""Values of the command line that Hydra's grammar would not read as the text that they are."""

from __future__ import annotations

import re
from pathlib import Path

TEXTS = frozenset(
    {
        "checkpoint",
        "root",
        "dir",
        "file",
        "report",
        "logits",
        "path",
        "train",
        "test",
        "name",
        "task",
        "head",
        "prefix",
    }
)
"""Last parts of keys whose value is a text, often a path or a name."""

PATHS = TEXTS | {"labels"}
"""Last parts of keys whose value may be a path."""

RUN = re.compile(r"[^\s\[\]{}(),:='\"\\](?:[^\[\]{}(),:='\"\\]*[^\s\[\]{}(),:='\"\\])?")
UNREADABLE = re.compile(r"[^\x00-\x7f]|[~#&;!<>^`]")
"""Characters that Hydra only reads in quotes."""


def quoted(text: str) -> str:
    r"""A text as a quoted value of Hydra; `${` is not an interpolation.

    >>> print(quoted('model "a" [1].pt'))
    "model \"a\" [1].pt"
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=text.replace("${", "\\${"), quote=Quote.double).with_quotes()


def literal(argument: str) -> str:
    """The override `KEY=VALUE` with its value in quotes where it can only be a text; others are unchanged.

    That is: the path of something that exists; a text with the form of a number, for a key in TEXTS; and, in a
    list or a mapping, words with characters that Hydra only reads in quotes (letters beyond ASCII).
    """
    key, _, value = argument.partition("=")
    last = key.rpartition(".")[2]
    if (
        not value
        or value == "null"
        or (set(value) & set("'\"") and _reads(argument))
        or re.fullmatch(r"[+~]*", key)
    ):
        return argument
    if (last in PATHS and _exists(value)) or (last in TEXTS and _is_text(value)):
        return f"{key}={quoted(value)}"
    if set(value) & set("[{,") and not set(value) & set("'\"") and "${" not in value:
        return f"{key}={RUN.sub(lambda run: quoted(run[0]) if UNREADABLE.search(run[0]) else run[0], value)}"
    return argument


def _reads(argument: str) -> bool:
    """Whether Hydra can read an override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _is_text(value: str) -> bool:
    """Whether Hydra would take a value for a number or a truth value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(f"key={value}")
        return not found.is_sweep_override() and isinstance(found.value(), bool | int | float)
    except HydraException:
        return False


def _exists(value: str) -> bool:
    """Whether a value is the path of a file or folder and more than a plain word, whose reading is the same."""
    try:
        return bool(re.search(r"[^\w./-]", value)) and Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
