"""Atomic writing of results: a folder or file is written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fsmerge_cli.common.errors import CertificateError, OutputError, reason
from fsmerge_cli.common.leftovers import clean_finished
from fsmerge_cli.common.locking import locked
from fsmerge_cli.common.own_files import (
    LIST,
    OwnPaths,
    first,
    has_list,
    not_ours,
    protected,
    remove,
    remove_checked,
    write_list,
)
from fsmerge_cli.common.separation import Inputs, read_inside, resolved, written_inside
from fsmerge_cli.common.shown import json_text

FINISHED = "evaluation.json"
"""A folder that contains this file is a finished run."""


@contextmanager
def claim(
    folder: Path, overwrite: bool, inputs: Inputs = (), replaced: re.Pattern[str] | None = None
) -> Iterator[Path]:
    """Reserve `folder` for one writer; yields a temporary folder that is renamed to `folder` on success.

    inputs: what the run reads. replaced: for a folder of the cache, the files that may be replaced whatever they
    contain; None: unchanged files of the folder's list (`own_files`).

    Raises OutputError where another run is writing the folder, where it cannot be written, overlaps with an input,
    holds a finished run and `overwrite` is off, or holds anything that fsmerge did not write or that was changed
    since; also where such a thing or a link has the name of a path that a run writes beside it. A failure leaves
    nothing behind, except a model that fails a certificate: it is kept next to `folder` as NAME.failed. An
    existing result is only replaced by a complete one. Exceptions raised inside the caller's block are passed on
    unchanged.
    """
    with ExitStack() as stack:
        with output_errors(folder):
            folder = resolved(folder)
            own = OwnPaths(folder)
            _check_place(own, inputs)
            stack.enter_context(_parents(folder))
            own.check_lock()
            stack.enter_context(locked(own.lock, wait=False))
            own.check()
            _clean(own)
            clean_finished(folder, FINISHED)
            _check_free(folder, overwrite, replaced)
            own.temporary.mkdir()
            stack.callback(_discard, own.temporary)
            write_list(own.temporary, finished=False)
        try:
            yield own.temporary
        except CertificateError as error:
            write_list(own.temporary)
            remove(own.failed)
            kept = _free(own.failed)
            own.temporary.rename(kept)
            raise CertificateError(error.broken, str(kept)) from None
        with output_errors(folder):
            _publish(own, overwrite, replaced)


def check_claim(folder: Path, overwrite: bool, inputs: Inputs = ()) -> None:
    """Raise OutputError where `claim` would, as far as that can be found without writing anything."""
    with output_errors(folder):
        folder = resolved(folder)
        own = OwnPaths(folder)
        _check_place(own, inputs)
        above = next(parent for parent in folder.parents if parent.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "", str(above))
        if above != folder.parent:
            return
        own.check_lock()
        if own.lock.is_file():
            with locked(own.lock, wait=False, remove=False):
                pass
        own.check()
        _check_free(folder, overwrite, None)


def tidy(folder: Path) -> None:
    """Remove what a killed run left beside a folder that it had finished; nothing while another run writes it."""
    own = OwnPaths(resolved(folder))
    if (own.folder / FINISHED).is_file() and any(own.folder.parent.glob(f".{glob.escape(own.folder.name)}.*")):
        with suppress(Timeout, OSError, OutputError):  # a run that would write what is not ours reports it
            own.check_lock()
            with locked(own.lock, wait=False):
                own.check()
                _clean(own)
                clean_finished(own.folder, FINISHED)


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


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors requires them: on the CPU, contiguous, without shared storage, sorted by name."""
    return {name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)}


def _check_place(own: OwnPaths, inputs: Inputs) -> None:
    """Raise OutputError where a folder cannot be replaced as a whole, or where inputs and outputs overlap."""
    folder, another = own.folder, "Choose another output.dir=..."
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder. {another}")
    if not next(place for place in (folder, *folder.parents) if place.exists()).is_dir():
        raise NotADirectoryError
    if folder in (here := Path.cwd().resolve(), *here.parents):
        raise OutputError(
            f"output.dir={folder} is the current folder or holds it, and a run replaces its folder as a whole. "
            "Give a folder inside it, for example output.dir=outputs/run"
        )
    if folder.is_mount():
        raise OutputError(
            f"output.dir={folder} is a mount point, which cannot be replaced as a whole. Give a folder inside it: "
            f"output.dir={folder / 'run'}"
        )
    if found := read_inside(folder, inputs):
        raise OutputError(f"{found.what} lies in {folder}, which output.overwrite=true would replace. {another}")
    if found := written_inside(folder, inputs):
        raise OutputError(
            f"output.dir={folder} lies in {found.path} ({found.what}), which this run reads and never changes. "
            f"{another}"
        )
    for path in own.beside():
        if found := read_inside(path, inputs):
            raise OutputError(f"{found.what} lies in {path}, which a run into {folder} would write. {another}")


def _check_free(folder: Path, overwrite: bool, replaced: re.Pattern[str] | None) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if replaced is None and not has_list(folder):
        raise OutputError(
            f"{folder} contains files but no {LIST}, so it is not replaced. Choose another output.dir=..."
        )
    if not overwrite:
        raise OutputError(
            f"{folder} holds a finished run. Pass output.overwrite=true to replace it, "
            "or choose another output.dir=..."
        )
    if found := not_ours(folder, replaced):
        raise OutputError(
            f"{folder} also holds what this run would delete and fsmerge did not write: {first(found)}. Move it "
            "away, or choose another output.dir=..."
        )
    if closed := protected(folder):
        raise OutputError(
            f"{closed} is write-protected, so it is not replaced. Change its permissions, or choose another "
            "output.dir=..."
        )


def _clean(own: OwnPaths) -> None:
    """Remove the files of a killed run (the lock is held); restore a result that it had moved aside."""
    if own.aside.exists() and not own.folder.exists():
        own.aside.rename(own.folder)
    for path in own.left():
        if path == own.aside:  # may hold what somebody added
            remove(path)
        else:
            remove_checked(path)


def _discard(temporary: Path) -> None:
    if temporary.is_dir():
        with suppress(OSError):
            remove_checked(temporary)


def _publish(own: OwnPaths, overwrite: bool, replaced: re.Pattern[str] | None) -> None:
    """Rename the temporary folder to its final name. What has appeared there since the first check is kept."""
    temporary, folder = own.temporary, own.folder
    write_list(temporary)
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if not overwrite or not folder.exists():
        try:
            temporary.rename(folder)  # also replaces an empty folder, and nothing else
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise _kept(own, "something has appeared there") from None
            raise
        return
    folder.rename(own.aside)
    try:
        found = (
            not_ours(own.aside, replaced) if own.aside.is_dir() and not own.aside.is_symlink() else ["no folder"]
        )
        if found:
            raise _kept(own, first(found))
        temporary.rename(folder)
    except BaseException:
        own.aside.rename(folder)
        raise
    remove(own.aside, replaced)


def _kept(own: OwnPaths, why: str) -> OutputError:
    """Keep a finished result under a free name; the error that reports it."""
    place = _free(own.folder.with_name(f"{own.folder.name}-new"))
    own.temporary.rename(place)
    return OutputError(
        f"{own.folder} was changed while the run was writing ({why}), so it is not replaced. The result is in "
        f"{place}."
    )


def _free(path: Path) -> Path:
    """The path, or the first of PATH-2, PATH-3, ... where nothing is."""
    place, i = path, 1
    while os.path.lexists(place):
        i += 1
        place = path.with_name(f"{path.name}-{i}")
    return place
