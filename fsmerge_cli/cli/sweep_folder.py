"""The folder of a sweep: which of its files are ours, so that nothing else is replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fsmerge_cli.common.atomic import output_errors, write_json
from fsmerge_cli.common.errors import OutputError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.output_files import write_files
from fsmerge_cli.common.own_files import first, sha256, strangers
from fsmerge_cli.common.separation import resolved

LIST = ".fsmerge-sweep.json"
"""Marks the folder of a sweep; lists its tables and plots with their SHA-256."""

UNLISTED = re.compile(re.escape(f".{LIST}.") + r"[0-9a-f]{8}\.tmp")
"""What a sweep leaves that is killed before it has its list."""

SUMMARY = ("summary.csv", "summary.svg", "pareto.csv", "pareto.svg", "surrogate.csv")
BY_HYDRA = ("multirun.yaml", "optimization_results.yaml")
RECORD = re.compile(r"\d{5}\.json")


def start(folder: Path, again: bool) -> None:
    """Prepare the folder for a sweep, and delete the records of an earlier one in it.

    again: whether an earlier sweep in the folder is continued or replaced. Raises OutputError where the folder
    holds one and `again` is off, or where something that fsmerge did not write has a name that the sweep writes.
    """
    folder = resolved(folder, "hydra.sweep.dir=")
    with output_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"hydra.sweep.dir={folder} is a file. Give a folder.")
        listed, recorded = _listed(folder), records(folder)
        other = [] if listed is not None or not folder.exists() else strangers(folder, UNLISTED)
        foreign = [name for name in (*SUMMARY, *BY_HYDRA, LIST, "jobs") if not _is_ours(folder / name, listed)]
        foreign += [f"jobs/{path.name}" for path in recorded if not _is_record(path)]
        if foreign:
            raise OutputError(
                f"{folder} holds what this sweep would replace and fsmerge did not write, or was changed since: "
                f"{first(foreign)}. Move it away, or choose another hydra.sweep.dir=..."
            )
        if other:
            raise OutputError(
                f"{folder} holds other files than those of a sweep: {first(other)}. Give a new or empty folder: "
                "hydra.sweep.dir=..."
            )
        if listed is not None and not again:
            raise OutputError(
                f"{folder} holds an earlier sweep. Pass resume=true to continue it, output.overwrite=true to "
                "replace it, or choose another hydra.sweep.dir=..."
            )
        for path in [*recorded, *(folder / name for name in SUMMARY), *_unfinished(folder)]:
            path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        _write_list(folder, {})


def _unfinished(folder: Path) -> list[Path]:
    """Files that a killed sweep had begun to write, in a folder that is known as that of a sweep."""
    names = re.compile(rf"\.({'|'.join(map(re.escape, (*SUMMARY, LIST)))}|{RECORD.pattern})\.[0-9a-f]{{8}}\.tmp")
    places = [place for place in (folder, folder / "jobs") if place.is_dir() and not place.is_symlink()]
    found = (path for place in places for path in place.iterdir() if names.fullmatch(path.name))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def records(folder: Path) -> list[Path]:
    """The recorded jobs in the folder of a sweep."""
    jobs = folder / "jobs"
    found = sorted(jobs.iterdir()) if jobs.is_dir() and not jobs.is_symlink() else []
    return [path for path in found if RECORD.fullmatch(path.name)]


def write(path: Path, how: Callable[[Path], None]) -> None:
    """Write a table or plot of a sweep. The list has it first, so that a killed sweep leaves nothing unlisted."""

    def listed(temporary: Path) -> None:
        how(temporary)
        _write_list(path.parent, {**(_listed(path.parent) or {}), path.name: sha256(temporary)})

    write_files({"": (path, listed)}, overwrite=True)


def _write_list(folder: Path, files: Mapping[str, str]) -> None:
    """Replace the list of the tables and plots of a sweep."""
    content = {"written_by": "fsmerge", "files": dict(files)}
    write_files({"": (folder / LIST, partial(write_json, value=content))}, overwrite=True)


def _listed(folder: Path) -> dict[str, Any] | None:
    """The list of a folder; None where there is none, or it is damaged."""
    path = folder / LIST
    try:
        found = {} if path.is_symlink() else read_json_object(path)
    except UnreadableError:
        return None
    files = found.get("files") if found.get("written_by") == "fsmerge" else None
    return files if isinstance(files, dict) else None


def _is_ours(path: Path, listed: dict[str, Any] | None) -> bool:
    """Whether nothing has this path, or a file or folder of an earlier sweep."""
    if not os.path.lexists(path):
        return True
    if listed is None or path.is_symlink() or path.is_dir() != (path.name == "jobs"):
        return False
    return path.name not in SUMMARY or listed.get(path.name) == sha256(path)


def _is_record(path: Path) -> bool:
    """Whether a file is the recorded result of a job."""
    try:
        return not path.is_symlink() and {"run", "exit_code"} <= read_json_object(path).keys()
    except UnreadableError:
        return False
