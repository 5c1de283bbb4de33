"""What a run reads and what it writes are kept apart, whatever the spelling of the paths.

Paths are compared by device and inode of the path and of all folders above it. So links, `..`, mounts, hard links
and other spellings of one name cannot hide that two paths are the same.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fsmerge_cli.common.errors import OutputError, reason


class Input(NamedTuple):
    """A file or folder that a run reads.

    what: as a message calls it. container: whether the folder may also hold runs (the root of several data sets).
    """

    what: str
    path: str | Path
    container: bool = False


Inputs = Sequence[Input]

Identity = tuple[int, int, tuple[str, ...]]
"""Device and inode of a path, or of the nearest folder above it that exists and the names below that folder."""


def expanded(path: str | Path) -> Path:
    """The path with ~ resolved; unchanged where that is not possible, which `resolved` reports."""
    with suppress(RuntimeError):  # of an unknown user
        return Path(path).expanduser()
    return Path(path)


def resolved(path: Path, key: str = "output.dir=") -> Path:
    """The absolute path, with links above it and ~ resolved. Raises OutputError for a link and an invalid path.

    key: the option that sets the path.
    """
    try:
        path = path.expanduser()
        path = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
        linked = path.is_symlink()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, ~ of an unknown user, circular links
        raise OutputError(f"cannot write {path}: {reason(error)}. Choose another {key}...") from None
    if linked:
        raise OutputError(
            f"{path} is a link, and links are not followed where something is written. Give the path that it "
            f"leads to, or choose another {key}..."
        )
    return path


def read_inside(output: Path, inputs: Inputs) -> Input | None:
    """The first input that lies in the folder `output`, or is `output` itself; also by way of a link inside it."""
    if not output.exists():
        return None
    own = _chain(output)[0]
    for found in inputs:
        for path in _targets(found.path, own):
            if own in _chain(path):
                return found
    return None


def written_inside(output: Path, inputs: Inputs) -> Input | None:
    """The first input folder in which `output` lies; containers only if `output` is an existing file."""
    above = _chain(output)
    for found in inputs:
        path = _resolve(found.path)
        holds = path is not None and path.exists() and _chain(path)[0] in above
        if holds and (not found.container or output.is_file()):
            return found
    return None


def same(first: Path, second: Path) -> bool:
    """Whether two paths are one, or may be one on a system that ignores case."""
    return _chain(first)[0] == _chain(second)[0]


def _chain(path: Path) -> list[Identity]:
    """The identities of a path and of all folders above it, from the path up."""
    places = [path, *path.parents]
    found: list[Identity] = []
    missing: list[Path] = []
    for place in places:
        try:
            info = place.stat()
        except (OSError, ValueError):
            missing.append(place)
            continue
        if missing:
            names = [unicodedata.normalize("NFC", p.name).casefold() for p in reversed(missing)]
            found += [(info.st_dev, info.st_ino, tuple(names[: len(names) - i])) for i in range(len(names))]
            missing = []
        found.append((info.st_dev, info.st_ino, ()))
    return found


def _resolve(path: str | Path) -> Path | None:
    """The path without links; None where it is invalid, which its reader reports."""
    with suppress(OSError, ValueError, RuntimeError):
        return Path(path).expanduser().resolve()
    return None


def _targets(path: str | Path, wanted: Identity) -> Iterator[Path]:
    """A path, and what its folder holds by way of links (or as another name of the file `wanted`)."""
    start = _resolve(path)
    if start is None:
        return
    yield start
    folders = [start] if start.is_dir() else []
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = _resolve(entry.path)
                    if target is not None:
                        yield target
                elif entry.is_dir():
                    folders.append(Path(entry.path))
                elif entry.inode() == wanted[1]:
                    yield Path(entry.path)
