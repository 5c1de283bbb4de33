"""Atomic writing of results: a folder or file is written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import glob
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
from fsmerge_cli.common.leftovers import clean_finished
from fsmerge_cli.common.shown import json_text

FINISHED = "evaluation.json"
"""A folder that contains this file is a finished run written by fsmerge."""


@contextmanager
def claim(folder: Path, overwrite: bool, finished: str | None = FINISHED) -> Iterator[Path]:
    """Reserve `folder` for one writer; yields an empty temporary folder that is renamed to `folder` on success.

    Raises OutputError where another run is writing the folder, where it holds a finished run and `overwrite` is
    off, where it contains files that fsmerge did not write, or where it cannot be written. finished: the file that
    marks a folder as written by fsmerge (None: any folder may be replaced). A failure leaves nothing behind,
    except a model that fails a certificate: it is kept next to `folder` as NAME.failed. An existing result is
    only replaced by a complete one. Exceptions raised inside the caller's block are passed on unchanged.
    """
    with ExitStack() as stack:
        with output_errors(folder):
            folder = resolved(folder)
            stack.enter_context(_parents(folder))
            stack.enter_context(_lock(folder))
            _clean(folder)
            clean_finished(folder, FINISHED)
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
        with output_errors(folder):
            _publish(temporary, folder)


def check_claim(folder: Path, overwrite: bool, finished: str | None = FINISHED) -> None:
    """Raise OutputError where `claim` would, as far as that can be found without writing anything."""
    with output_errors(folder):
        folder = resolved(folder)
        above = next(parent for parent in folder.parents if parent.exists())
        if not above.is_dir():
            raise NotADirectoryError
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "", str(above))
        lock = folder.parent / f".{folder.name}.lock"
        if lock.is_file():
            with FileLock(lock, timeout=0):
                pass
        _check_free(folder, overwrite, finished)


def tidy(folder: Path) -> None:
    """Remove what a killed run left beside a folder that it had finished; nothing while another run writes it."""
    folder = resolved(folder)
    if (folder / FINISHED).is_file() and any(folder.parent.glob(f".{glob.escape(folder.name)}.*")):
        with suppress(Timeout, OSError), _lock(folder):
            _clean(folder)
            clean_finished(folder, FINISHED)


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Turn system errors of writing `folder` into OutputError."""
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
    """The absolute path, with links and ~ resolved. Raises OutputError where the path is invalid."""
    try:
        return folder.expanduser().resolve()
    except (ValueError, RuntimeError) as error:  # a null byte, ~ of an unknown user, circular links
        raise OutputError(f"cannot write {folder}: {reason(error)}. Choose another output.dir=...") from None


def check_file(path: Path, model: Path, overwrite: bool, key: str) -> Path:
    """The resolved path of an output file. Raises OutputError, before anything is computed.

    key: the option that sets the path. An existing file is only replaced with `overwrite`; a path inside the
    folder of the model is refused.
    """
    path = resolved(path)
    if path.is_dir():
        raise OutputError(f"{key}={path} is a folder. Give the path of a file.")
    if path.is_relative_to(model.resolve()):
        raise OutputError(
            f"{key}={path} is inside the folder of the evaluated model, which must not change. Choose another "
            "file."
        )
    if not path.parent.is_dir():
        raise OutputError(
            f"{key}={path}: the folder {path.parent} does not exist. Create it, or choose another file."
        )
    if path.exists() and not overwrite:
        raise OutputError(
            f"{key}={path} already exists. Pass output.overwrite=true to replace it, or choose another file."
        )
    return path


@contextmanager
def replace_file(path: Path, key: str) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` at the end of the block. Raises OutputError."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {key}={path}: {reason(error)}. Choose another file.") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name as safetensors, with the permissions of every other written file."""
    with usual_permissions(path):
        save_file(_plain(tensors), path, metadata=None if metadata is None else dict(metadata))


@contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """Inside, a file is written that gets the permissions of every other one: safetensors keeps to its owner."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    yield
    path.chmod(mode)


def write_json(path: Path, value: Any) -> None:
    """Write indented, strictly valid JSON (no NaN)."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; characters that cannot be encoded (lone surrogates) are escaped."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Create the parent folders; on failure, remove those that were created and are empty."""
    created = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for parent in created:
                parent.rmdir()
        raise


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`. Its file is removed while the lock is held, which filelock 4 detects."""
    path = folder.parent / f".{folder.name}.lock"
    with FileLock(path, timeout=0):
        try:
            yield
        finally:
            with suppress(OSError):  # systems that cannot remove open files keep the empty file
                path.unlink()


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors requires them: on the CPU, contiguous, without shared storage, sorted by name."""
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
            f"{folder} contains files but no {finished}, so it is not replaced. Choose another output.dir=..."
        )
    if not overwrite:
        raise OutputError(
            f"{folder} holds a finished run. Pass output.overwrite=true to replace it, "
            "or choose another output.dir=..."
        )


def _clean(folder: Path) -> None:
    """Remove the files of a killed run (the lock is held); restore a result that it had moved aside."""
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
