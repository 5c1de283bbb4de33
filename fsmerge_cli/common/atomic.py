"""The only place that writes results: whole folders under a temporary name, then one rename."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fsmerge_cli.common.errors import CertificateError, OutputError, reason

FINISHED = "evaluation.json"
"""A run's folder is finished, and ours, when it holds this file."""


@contextmanager
def claim(folder: Path, overwrite: bool, finished: str | None = FINISHED) -> Iterator[Path]:
    """Reserve `folder` for one writer; yields an empty folder beside it that takes its name on success.

    Raises OutputError where another run holds the folder, where it is finished and `overwrite` is off, where
    it holds files that this package did not write, or where it cannot be written. finished: the file that marks
    a folder as ours (None: it is ours whatever it holds). Nothing is left behind on failure, except what a
    certificate refused: that lies beside `folder` as NAME.failed. An older result is only replaced by a complete
    one. Errors of the caller's own block pass through as they are.
    """
    with ExitStack() as stack:
        with explained(folder):
            folder = resolved(folder)
            stack.enter_context(_parents(folder))
            stack.enter_context(_lock(folder))
            _clean(folder)
            _check_free(folder, overwrite, finished)
            temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
            temporary.mkdir()
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        try:
            yield temporary
        except CertificateError as error:
            kept = folder.parent / f"{folder.name}.failed"
            shutil.rmtree(kept, ignore_errors=True)
            temporary.rename(kept)
            raise CertificateError(error.broken, str(kept)) from None
        with explained(folder):
            _publish(temporary, folder)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what stands in the way of writing `folder` in the user's words."""
    try:
        yield
    except Timeout:
        raise OutputError(
            f"another run is writing {folder.absolute()}. Wait for it, or choose another output.dir=..."
        ) from None
    except PermissionError as error:
        raise OutputError(
            f"cannot write {error.filename or folder}: permission denied. Choose another output.dir=..."
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise OutputError(
            f"cannot make the folder {folder.absolute()}: a part of the path is a file. "
            "Choose another output.dir=..."
        ) from None
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {folder.absolute()}: {reason(error)}. Choose another output.dir=..."
        ) from None


def resolved(folder: Path) -> Path:
    """The folder itself, behind links and ~. Raises OutputError where no path is meant."""
    try:
        return folder.expanduser().resolve()
    except (ValueError, RuntimeError) as error:  # a zero byte, ~ of an unknown user, links in a circle
        raise OutputError(f"cannot write {folder}: {reason(error)}. Choose another output.dir=...") from None


def check_file(path: Path, model: Path, overwrite: bool, key: str) -> Path:
    """The file itself, which may be written beside a model. Raises OutputError, before anything is computed.

    key: that the user chose it with. A file that is there is only replaced with `overwrite`; nothing is written
    into the folder of the model.
    """
    path = resolved(path)
    if path.is_dir():
        raise OutputError(f"{key}={path} is a folder. Give the name of a file.")
    if path.is_relative_to(model.resolve()):
        raise OutputError(f"{key}={path} lies in the evaluated model, which stays as it is. Choose another.")
    if not path.parent.is_dir():
        raise OutputError(f"{key}={path}: there is no folder {path.parent}. Make it, or choose another.")
    if path.exists() and not overwrite:
        raise OutputError(
            f"{key}={path} is there already. Pass output.overwrite=true to replace it, or choose another."
        )
    return path


@contextmanager
def whole(path: Path, key: str) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place at the end of the block. Raises OutputError."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {key}={path}: {reason(error)}. Choose another.") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name as safetensors."""
    save_file(_plain(tensors), path, metadata=None if metadata is None else dict(metadata))


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read, and a strict parser too (no NaN)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; what has no place in it (half characters, bytes of a file's name) as escapes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the folders above, and take away again those that a failed run leaves empty."""
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock beside `folder`; its file is removed while it is held, which filelock 4 notices."""
    path = folder.parent / f".{folder.name}.lock"
    with FileLock(path, timeout=0):
        try:
            yield
        finally:
            with suppress(OSError):  # a system that keeps open files: the empty file stays
                path.unlink()


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, contiguous, no storage shared, in a fixed order."""
    return {name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)}


def _check_free(folder: Path, overwrite: bool, finished: str | None) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder. Choose another output.dir=...")
    if finished is None or not any(folder.iterdir()):
        return
    if not (folder / finished).is_file():
        raise OutputError(
            f"{folder} holds other files (no {finished}), so it is left alone. Choose another output.dir=..."
        )
    if not overwrite:
        raise OutputError(
            f"{folder} holds a finished run. Pass output.overwrite=true to replace it, "
            "or choose another output.dir=..."
        )


def _clean(folder: Path) -> None:
    """Take away what a killed run left; we hold the lock. A result that it had moved aside comes back."""
    old = _aside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(\d+|old)\.tmp")
    for path in folder.parent.iterdir():
        if pattern.fullmatch(path.name):
            shutil.rmtree(path)


def _aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old.tmp"


def _publish(temporary: Path, folder: Path) -> None:
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if not folder.exists():
        temporary.rename(folder)
        return
    old = _aside(folder)
    folder.rename(old)
    try:
        temporary.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)
