"""Notes for the user, in the order in which they are shown: warnings are notes that are shown above the scores."""

from __future__ import annotations

from collections.abc import Iterable

WARNING = "warning: "
"""First word of a note that is shown above the scores."""


def warnings_in(notes: Iterable[str]) -> list[str]:
    """The warnings, without their first word."""
    return [note.removeprefix(WARNING) for note in notes if note.startswith(WARNING)]


def notes_in(notes: Iterable[str]) -> list[str]:
    """All other notes."""
    return [note for note in notes if not note.startswith(WARNING)]
