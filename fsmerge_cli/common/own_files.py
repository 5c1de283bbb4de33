"""Which files are ours: every path that a run writes, and the list of files that makes a folder replaceable.

A run into the folder NAME writes NAME and, next to it, the paths of `OwnPaths`. A folder is only replaced if it
has our list of its files, `.fsmerge.json`, and holds only files of that list, unchanged. Nothing is ever deleted
by its name alone, and links are never followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import OutputError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.shown import listed

LIST = ".fsmerge.json"
"""The list of the files of a folder, with their SHA-256; only folders with it are replaced."""

LATER = re.compile(r"run\.log|tensorboard/events\.out\.tfevents\.[^/]+")
"""Log files, which a run adds to its folder after the list."""

STATE = re.compile(r"(run|training\d+)\.(json|safetensors|tmp)")
"""The files of a state folder."""

UNFINISHED = re.compile(r"\..+\.\d+\.tmp", re.DOTALL)
"""The name of a folder that is being written; only there a list without files stands for all files of a result."""

BEING_WRITTEN = re.compile(
    r"\.fsmerge\.json(\.tmp)?|((merged|classifier|compressed|tasks/[^/]+)/)?"
    r"([a-z_]+\.(json|safetensors|yaml|html)|(vocab|merges)\.txt|README\.md)"
)
"""The files of a result."""

PARTS = re.compile(r"(merged|classifier|compressed|tasks(/[^/]+)?)/")
"""The folders of a result."""

EXAMPLES = 3
"""Most files that a message lists."""


@dataclass(frozen=True)
class OwnPaths:
    """Every path that a run into `folder` writes."""

    folder: Path

    @property
    def lock(self) -> Path:
        """Locked while a run writes the folder."""
        return self._beside(f".{self.folder.name}.lock")

    @property
    def state(self) -> Path:
        """The saved state of a training."""
        return self._beside(f".{self.folder.name}.state")

    @property
    def logs(self) -> Path:
        """The log files, until the run is finished."""
        return self._beside(f".{self.folder.name}.logs")

    @property
    def ending(self) -> tuple[Path, Path]:
        """State and logs at the end of the run, before they are deleted and moved."""
        return self._beside(f"{self.state.name}.tmp"), self._beside(f"{self.logs.name}.tmp")

    @property
    def failed(self) -> Path:
        """A model that failed a certificate."""
        return self._beside(f"{self.folder.name}.failed")

    @property
    def aside(self) -> Path:
        """The old result, while the new one takes its place."""
        return self._beside(f".{self.folder.name}.old.tmp")

    @property
    def temporary(self) -> Path:
        """The new result, until it is complete."""
        return self._beside(f".{self.folder.name}.{os.getpid()}.tmp")

    def left(self) -> list[Path]:
        """Temporary folders of this and of earlier runs."""
        pattern = re.compile(rf"\.{re.escape(self.folder.name)}\.(\d+|old)\.tmp")
        return sorted(path for path in self.folder.parent.iterdir() if pattern.fullmatch(path.name))

    def beside(self) -> tuple[Path, ...]:
        """The paths next to the folder."""
        return self.lock, self.state, self.logs, *self.ending, self.failed, self.aside, self.temporary

    def check_lock(self) -> None:
        """Raise OutputError where something that is no lock has the name of the lock."""
        if os.path.lexists(self.lock) and not _is_lock(self.lock):
            raise self._error(self.lock, "it is a link" if self.lock.is_symlink() else "it is no lock")

    def check(self) -> None:
        """Raise OutputError where something that is not ours has the name of a folder beside the folder."""
        for path in (self.state, self.ending[0]):
            self._check(path, lambda path: strangers(path, STATE))
        for path in (self.logs, self.ending[1]):
            self._check(path, lambda path: strangers(path, LATER))
        for path in (self.failed, *self.left()):
            self._check(path, not_ours)

    def _beside(self, name: str) -> Path:
        return self.folder.parent / name

    def _check(self, path: Path, foreign: Callable[[Path], list[str]]) -> None:
        if path.is_symlink():
            raise self._error(path, "it is a link")
        if path.exists() and not path.is_dir():
            raise self._error(path, "it is no folder")
        if path.exists() and (found := foreign(path)):
            raise self._error(path, f"it holds {first(found)}")

    def _error(self, path: Path, why: str) -> OutputError:
        return OutputError(
            f"{path} was not written by fsmerge ({why}), and a run into {self.folder} would replace it. Move it "
            "away, or choose another output.dir=..."
        )


def write_list(folder: Path, finished: bool = True) -> None:
    """Write the list of all files in a folder; finished=False: a folder that is still being written."""
    files = {name: sha256(folder / name) for name, _ in _files(folder) if name != LIST} if finished else None
    _replace_list(folder, files)


def add_to_list(folder: Path, files: Mapping[str, Path]) -> None:
    """Add files to the list of a finished folder, before they move there. files: by their path in the folder."""
    if found := _read_list(folder):
        _replace_list(folder, (found["files"] or {}) | {name: sha256(path) for name, path in files.items()})


def _replace_list(folder: Path, files: Mapping[str, str] | None) -> None:
    temporary = folder / f"{LIST}.tmp"
    temporary.write_text(json.dumps({"written_by": "fsmerge", "files": files}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / LIST)


def not_ours(folder: Path, allowed: re.Pattern[str] | None = None) -> list[str]:
    """What a folder holds beside unchanged files of its list; empty where all of it may be deleted.

    allowed: the only files that it may hold, with any content; None: those of its list.
    """
    if allowed is not None:
        return [name for name in strangers(folder, allowed) if name != LIST]
    found = _read_list(folder)
    if found is None or (found["files"] is None and not UNFINISHED.fullmatch(folder.name)):
        return strangers(folder, re.compile(re.escape(LIST) + r"(\.tmp)?"))
    files = found["files"]
    if files is None:  # still being written when its process was killed
        return [name for name in strangers(folder, BEING_WRITTEN) if not PARTS.fullmatch(name)]
    wrong = []
    for name, regular in _files(folder, expected=lambda name: _is_folder_of(files, name)):
        if name in (LIST, f"{LIST}.tmp") or (name.endswith("/") and _is_folder_of(files, name[:-1])):
            continue  # an own folder without files is left where a deletion was cut off
        if not regular or name not in files:
            wrong.append(name)
        elif files[name] != sha256(folder / name):
            wrong.append(f"{name}, which was changed")
    return sorted(wrong)


def has_list(folder: Path) -> bool:
    """Whether a folder has a list of its files that can be read."""
    return _read_list(folder) is not None


def listed_digests(folder: Path) -> dict[str, str] | None:
    """Path -> SHA-256 in the list of a finished folder; None where it has no list."""
    found = _read_list(folder)
    return None if found is None or found["files"] is None else dict(found["files"])


def strangers(folder: Path, allowed: re.Pattern[str]) -> list[str]:
    """Files, links and empty folders in a folder whose path is not `allowed`, sorted."""
    found = (name for name, regular in _files(folder) if not (regular and allowed.fullmatch(name)))
    return sorted(name for name in found if name != "tensorboard/")


def remove(folder: Path, allowed: re.Pattern[str] | None = None) -> None:
    """Delete the files of a folder that are `allowed` (None: those of its list) and the folders left empty.

    What else it holds, for example since the last check, is kept. Links are not followed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    files = (_read_list(folder) or {"files": {}})["files"] or {}
    for name, regular in list(_files(folder)):
        listed = name in files or name == f"{LIST}.tmp"
        if regular and name != LIST and (allowed.fullmatch(name) if allowed else listed):
            (folder / name).unlink()
    if [name for name, regular in _files(folder) if name != LIST and not name.endswith("/")]:
        return
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        path.rmdir()
    (folder / LIST).unlink(missing_ok=True)  # last: a kill leaves a folder that is still known as ours
    folder.rmdir()


def remove_checked(folder: Path) -> None:
    """Delete a folder that holds nothing but ours (see `not_ours`), its list last. Raises OSError."""
    for path in sorted(folder.iterdir()):
        if path.name == LIST:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / LIST).unlink(missing_ok=True)
    folder.rmdir()


def protected(folder: Path) -> Path | None:
    """The first folder in a folder, or itself, that its owner may not write; None if there is none."""
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())):
        if not place.stat().st_mode & stat.S_IWUSR:
            return place
    return None


def first(names: Sequence[str]) -> str:
    """The first names, for a message.

    >>> first(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return listed(names[:EXAMPLES]) + ", ..." * (len(names) > EXAMPLES)


def _is_lock(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISREG(info.st_mode) and info.st_size == 0 and info.st_nlink == 1


def _read_list(folder: Path) -> dict[str, Any] | None:
    """The list of a folder; None where there is none, or it is damaged."""
    path = folder / LIST
    if path.is_symlink():
        return None
    try:
        found = read_json_object(path)
    except UnreadableError:
        return None
    if found.get("written_by") != "fsmerge" or "files" not in found:
        return None
    return found if found["files"] is None or isinstance(found["files"], dict) else None


def _is_folder_of(files: Mapping[str, str], name: str) -> bool:
    return name == "tensorboard" or any(own.startswith(f"{name}/") for own in files)


def _files(folder: Path, expected: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, bool]]:
    """Everything in a folder that is no folder, with whether it is a regular file.

    Folders that are empty or not `expected` are yielded as well.
    """
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            yield entry.name, entry.is_file(follow_symlinks=False)
            continue
        inside = list(_files(Path(entry.path), lambda name, above=entry.name: expected(f"{above}/{name}")))  # type: ignore[misc]
        if not inside or not expected(entry.name):
            yield f"{entry.name}/", False
        yield from ((f"{entry.name}/{name}", regular) for name, regular in inside)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
