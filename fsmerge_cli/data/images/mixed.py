"""One folder of images for all tasks: which layouts mean that every source sees every image."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from fsmerge_cli.data.images.files import images, is_ignored, is_image

ALIKE = 0.6
"""From this share of equal letters on, the name of a folder may be a misspelt task."""


def is_mixed(root: Path, tasks: Sequence[str]) -> bool:
    """Whether the images below `root` (in its train/, if there is one) belong to no particular task.

    That is so where no folder has the name of a task, and there are images beside the folders, or folders that
    cannot be meant for the tasks: neither as many as there are tasks, nor with similar names.
    """
    folder = root / "train" if (root / "train").is_dir() else root
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # its reader reports it
        return False
    names = [path.name for path in entries if path.is_dir() and not is_ignored(path.name)]
    if {*names} & {*tasks} or any((root / task).is_dir() for task in tasks):
        return False
    if any(is_image(path) for path in entries):
        return True
    return bool(names) and len(names) != len(tasks) and not _alike(names, tasks) and bool(images(folder))


def _alike(names: Iterable[str], tasks: Sequence[str]) -> bool:
    """Whether some folder seems to be meant for a task: Pets or pets-2024 for pets."""
    low = [task.lower() for task in tasks]
    return any(
        any(task in name.lower() or name.lower() in task for task in low)
        or difflib.get_close_matches(name.lower(), low, 1, ALIKE)
        for name in names
    )
