"""One folder of images for all tasks: which layouts mean that every source sees every image."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from fsmerge_cli.common.shown import few, shown
from fsmerge_cli.data.images.files import images, is_ignored, is_image

ALIKE = 0.6
"""From this share of equal letters on, the name of a folder may be a misspelt task."""


def is_mixed(root: Path, tasks: Sequence[str]) -> bool:
    """Whether the images below `root` (in its train/, if there is one) belong to no particular task.

    That is so where no folder has the name of a task, and not every task one with a similar name, and there are
    images beside the folders, or folders that cannot be meant for the tasks: neither as many as there are tasks,
    nor any with a similar name.
    """
    folder = root / "train" if (root / "train").is_dir() else root
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # its reader reports it
        return False
    names = [path.name for path in entries if path.is_dir() and not is_ignored(path.name)]
    if {*names} & {*tasks} or any((root / task).is_dir() for task in tasks):
        return False
    alike = [_alike(names, [task]) for task in tasks]
    if any(is_image(path) for path in entries):
        return not all(alike)
    return bool(names) and len(names) != len(tasks) and not any(alike) and bool(images(folder))


def beside_tasks(root: Path) -> tuple[str, ...]:
    """A note on images that lie directly in the folder of the tasks' folders, which nobody reads."""
    found = [path.name for path in sorted(root.iterdir()) if is_image(path)]
    return (f"images in {shown(root)} beside the tasks' folders were not used: {few(found)}",) if found else ()


def _alike(names: Iterable[str], tasks: Sequence[str]) -> bool:
    """Whether some folder seems to be meant for a task: Pets or pets-2024 for pets."""
    low = [task.lower() for task in tasks]
    return any(
        any(task in name.lower() or name.lower() in task for task in low)
        or difflib.get_close_matches(name.lower(), low, 1, ALIKE)
        for name in names
    )
