"""Which files of a folder are images: their suffixes, links, hidden folders, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fsmerge_cli.common.errors import DataError, reason
from fsmerge_cli.common.shown import shown

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})

DOCUMENTS = frozenset(
    {
        ".csv",
        ".db",
        ".html",
        ".ini",
        ".ipynb",
        ".json",
        ".log",
        ".md",
        ".pdf",
        ".py",
        ".tsv",
        ".txt",
        ".xml",
        ".yaml",
    }
)
"""Suffixes of files that may lie beside images and need no mention."""

SYSTEM = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
"""Folders of macOS (in archives), Synology (thumbnails), Windows and Linux."""


def is_ignored(name: str) -> bool:
    """Hidden files, and folders in which systems keep files of their own."""
    return name.startswith(".") or name in SYSTEM


def walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder` that is not ignored. Links to folders are followed, each folder once.

    A link to a folder above leads to other classes and is not followed. Raises DataError for a folder that cannot
    be read.
    """
    seen = {os.path.realpath(parent) for parent in folder.absolute().parents}

    def refuse(error: OSError) -> None:
        raise DataError(
            f"the folder {shown(error.filename)} cannot be read ({reason(error)}). Change its permissions."
        )

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        yield from (Path(place) / name for name in files if not is_ignored(name))


def images(folder: Path) -> list[Path]:
    """Every image below `folder`, by its suffix, sorted."""
    return sorted(path for path in walk(folder) if is_image(path))


def is_image(path: Path) -> bool:
    """Whether it is a regular file, or a link to one, with the suffix of an image."""
    return path.suffix.lower() in SUFFIXES and not is_ignored(path.name) and path.is_file()


def other_files(folder: Path) -> str:
    """Files that are neither images nor documents, counted by suffix or kind; "" where there are none."""
    return by_suffix(path for path in walk(folder) if path.suffix.lower() not in SUFFIXES or not path.is_file())


def by_suffix(files: Iterable[Path], documents: frozenset[str] = DOCUMENTS) -> str:
    """Files counted by suffix or kind, without `documents`: "2 x .heic, 1 x broken link"; "" for none."""
    counts = Counter(_kind(path) for path in files if path.suffix.lower() not in documents)
    return ", ".join(f"{count} x {shown(suffix)}" for suffix, count in sorted(counts.items()))


def beside_splits(folder: Path, is_item: Callable[[Path], bool], items: str) -> str:
    """A note on what is neither in train nor in test of a folder; "" where there is nothing.

    is_item: whether a file counts. items: what the note calls them.
    """
    outside = [p for p in folder.iterdir() if p.name.partition(".")[0] not in ("train", "test")]
    below = {p.name: walk(p) if p.is_dir() else [p] for p in sorted(outside) if not is_ignored(p.name)}
    counts = {name: sum(map(is_item, files)) for name, files in below.items()}
    found = [f"{shown(name)} ({count})" for name, count in counts.items() if count]
    if not found:
        return ""
    few = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    return f"of {shown(folder)} only train and test are read; {items} beside them are not used: {few}"


def _kind(path: Path) -> str:
    """The suffix of a file, or why it is none."""
    if path.is_symlink() and not path.exists():
        return "broken link"
    return path.suffix.lower() or "no suffix" if path.is_file() else "no regular file"


def compared(root: Path, used: Iterable[str | Path], task: str, library: str) -> tuple[str, ...]:
    """Notes on the files below `root` that another library passed over. used: the files that it reads.

    Raises DataError where it reads hidden files, or files twice through links, or none of a folder of images.
    """
    taken = [Path(os.path.abspath(path)) for path in used]
    root = root.absolute()
    found = {Path(os.path.abspath(path)) for path in walk(root)}
    advice = "Remove them, or pass data=folder."
    own = [path for path in taken if path.is_relative_to(root)]
    if hidden := sorted({part for path in own for part in path.relative_to(root).parts if is_ignored(part)}):
        raise DataError(f"{library} takes hidden files or folders for images or classes: {_few(hidden)}. {advice}")
    again = sorted(str(path) for path in own if path not in found)
    if again:
        raise DataError(
            f"{library} reads {len(again)} files of {shown(root)} more than once, through links: "
            f"{_few(again)}. {advice}"
        )
    passed_over = found.difference(taken)
    filled = {folder for path in own for folder in path.parents}
    empty = sorted({str(path.parent) for path in passed_over if path.parent not in filled and by_suffix([path])})
    if empty:
        raise DataError(
            f"{library} reads no image of {len(empty)} folder{'s' if len(empty) > 1 else ''}: {_few(empty)}. "
            "Convert the files there, remove it, or pass data=folder, which reads more formats and follows links."
        )
    what = by_suffix(passed_over)
    return (f"task '{task}': files in {shown(root)} that {library} does not read: {what}",) if what else ()


def _few(names: list[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")
