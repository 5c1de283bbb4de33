"""Notes for the user, in the order in which they are shown: warnings are notes that are shown above the scores."""

from __future__ import annotations

import re
from collections.abc import Iterable

WARNING = "warning: "
"""First word of a note that is shown above the scores."""


NAMED = re.compile(r"(?P<kind>task |)(?P<name>'.+?'): ")
"""Beginning of a note on one source or task."""


def warnings_in(notes: Iterable[str]) -> list[str]:
    """The warnings, without their first word."""
    return [note.removeprefix(WARNING) for note in notes if note.startswith(WARNING)]


def notes_in(notes: Iterable[str]) -> list[str]:
    """All other notes; those that differ only in the name of their source or task are one.

    >>> notes_in(["'a': no mean", "warning: x", "'b': no mean", "task 'a': 3 images", "task 'b': 4 images"])
    ["'a', 'b': no mean", "task 'a': 3 images", "task 'b': 4 images"]
    """
    found: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        if not note.startswith(WARNING):
            named = NAMED.match(note)
            kind, name = (named["kind"], named["name"]) if named else ("", "")
            found.setdefault((kind, note[named.end() :] if named else note), []).append(name)
    return [_joined(kind, list(dict.fromkeys(names)), text) for (kind, text), names in found.items()]


def _joined(kind: str, names: list[str], text: str) -> str:
    if not names[0]:
        return text
    return f"{kind.replace('task', 'tasks') if len(names) > 1 else kind}{', '.join(names)}: {text}"
