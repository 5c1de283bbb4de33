"""State and logs that a run keeps beside its output folder NAME, and their end when the run is finished.

`.NAME.state` is deleted and `.NAME.logs` moves into the folder. Each is renamed first (`.NAME.state.tmp`,
`.NAME.logs.tmp`), so that a kill cannot leave half of it under its name.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from fsmerge_cli.common.own_files import LATER, STATE, add_to_list, remove, strangers


def beside(folder: Path, what: str) -> Path:
    """The path `.NAME.what` next to the folder NAME."""
    return folder.parent / f".{folder.name}.{what}"


def discard_state(state: Path) -> None:
    """Delete the folder of a state. Raises OSError."""
    renamed = state.with_name(f"{state.name}.tmp")
    if _is_own(renamed, STATE):
        remove(renamed, STATE)
    if _is_own(state, STATE):
        state.rename(renamed)
        remove(renamed, STATE)


def keep_logs(folder: Path) -> None:
    """Move the log files of a finished run into its folder. Errors of the disk are ignored."""
    logs, renamed = beside(folder, "logs"), beside(folder, "logs.tmp")
    with suppress(OSError):
        if _is_own(logs, LATER):
            logs.rename(renamed)
        if _is_own(renamed, LATER):
            files = {str(path.relative_to(renamed)): path for path in renamed.rglob("*") if path.is_file()}
            add_to_list(folder, files)
            for name, path in files.items():
                target = folder / name
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
            remove(renamed, LATER)


def clean_finished(folder: Path, finished: str) -> None:
    """Remove what the run that wrote `folder` left beside it because it was killed; the caller holds the lock.

    finished: the file that is written last. A state without a newer file is of that run or an earlier one. Logs
    are of that run if they were begun before that file and continued after it. What else lies there stays: the
    state of a run that was to replace the folder, or the logs of one that failed. Raises OSError.
    """
    if not (folder / finished).is_file():
        return
    written = (folder / finished).stat().st_mtime_ns
    state, logs = beside(folder, "state"), beside(folder, "logs")
    if not _is_own(state, STATE) or max(map(_changed, (state, *state.iterdir()))) <= written:
        discard_state(state)
    if not _is_own(logs, LATER) or _changed(logs) <= written <= max(map(_changed, logs.iterdir()), default=0):
        keep_logs(folder)


def unfinished(folder: Path) -> bool:
    """Whether an interrupted run into `folder` has left its state; call `clean_finished` first."""
    return _is_own(beside(folder, "state"), STATE)


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def _is_own(path: Path, allowed: re.Pattern[str]) -> bool:
    """Whether a folder is there that holds only files of ours; a link is not ours."""
    return path.is_dir() and not path.is_symlink() and not strangers(path, allowed)
