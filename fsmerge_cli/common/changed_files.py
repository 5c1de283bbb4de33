"""Files of a finished folder that are no longer those that its run wrote, by the list of their SHA-256."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fsmerge_cli.common.own_files import LIST, listed_digests, sha256
from fsmerge_cli.common.shown import few, shown

NO_MODEL = ("evaluation.json", "correct.safetensors", "config.yaml", "report.html", "README.md", "run.log")
"""Files of a result that are no part of a model."""

FOR_PEOPLE = ("README.md", "report.html")
"""Files that nothing reads: a person may edit or delete them, here and in any folder of a result."""

DEEPEST = 2
"""Most folders between a result and one of its models: tasks/NAME."""


def changed(folder: Path, names: Sequence[str] | None = None) -> list[str]:
    """Listed files of a finished folder that are missing or have another content; empty where it has no list.

    Without those FOR_PEOPLE. names: only these.
    """
    stated = listed_digests(folder) or {}
    read = [name for name in stated if name.rpartition("/")[2] not in FOR_PEOPLE]
    return sorted(name for name in read if (names is None or name in names) and _differs(folder, stated, name))


def of_model(place: Path) -> str | None:
    """A sentence on changed files of the model in a folder (or file) of a finished run; None where there are none.

    Cost: one reading of the files.
    """
    given = place if place.is_dir() else place.parent
    inside = Path(os.path.abspath(given))  # a relative path has no folders above
    for folder in (inside, *inside.parents[:DEEPEST]):
        if (stated := listed_digests(folder)) is None:
            continue
        start = "" if folder == inside else f"{inside.relative_to(folder).as_posix()}/"
        own = [name for name in stated if name.startswith(start) and "/" not in name.removeprefix(start)]
        own = [name for name in own if name.removeprefix(start) not in NO_MODEL]
        if not place.is_dir():
            own = [name for name in own if name == f"{start}{place.name}"]
        stated_as = folder if given.is_absolute() else Path(os.path.relpath(folder))
        return sentence(stated_as, [name for name in own if _differs(folder, stated, name)])
    return None


def sentence(folder: Path, names: Sequence[str]) -> str | None:
    """What to say of changed files; None where there are none."""
    if not names:
        return None
    return f"not as the run wrote it ({LIST} in {shown(folder)} has other checksums): {few(sorted(names))}"


def _differs(folder: Path, stated: Mapping[str, str], name: str) -> bool:
    path = folder / name
    try:
        return not path.is_file() or sha256(path) != stated[name]
    except OSError:
        return True
