"""The user's cache folder, and the table of features in it: found again by what they were made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import platformdirs
import torch
from filelock import FileLock
from torch import Tensor

LIMIT = 10 * 2**30
"""Bytes that the features of all runs may take; the entries that were used longest ago go first."""

SEAL = hashlib.sha256().digest_size
"""Bytes at the end of an entry: the SHA-256 of its numbers."""


def cache_folder() -> Path:
    """Where embedded sources and features lie: `FSMERGE_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("FSMERGE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("fsmerge")


def feature_folder() -> Path:
    """The part of the cache that holds features; it may be deleted at any time."""
    return cache_folder() / "features"


def stored(key: str, shape: tuple[int, int], make: Callable[[], Iterable[Tensor]]) -> Tensor:
    """The fp32 table [n, d] called `key`, memory-mapped: found, or made once and written.

    make: yields the rows in order, some at a time, [m, d] on any device. An entry that is cut off or holds
    other numbers than were written is made again. A second process waits for the first. Raises OSError where
    the folder cannot be written or is full, and whatever `make` raises; nothing half is left behind.
    """
    folder = feature_folder()
    path = folder / f"{key}.npy"
    found = _open(path, shape)  # needs no lock, nor a folder that can be written: entries appear whole
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_suffix(".lock")):
        found = _open(path, shape)
        if found is not None:
            return found
        temporary = path.with_suffix(".tmp")
        try:
            _write(temporary, shape, make())
            made = _open(temporary, shape)
            if made is None:
                raise OSError(f"{temporary} does not hold what was written")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    _make_room(folder, keep=path)
    return made


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock; its file is removed while it is held, which filelock 4 notices."""
    with FileLock(path):
        try:
            yield
        finally:
            with suppress(OSError):  # a system that keeps open files: the empty file stays
                path.unlink()


def _write(path: Path, shape: tuple[int, int], parts: Iterable[Tensor]) -> None:
    """Numpy's .npy format, then the seal. Written, not mapped: a full disk would kill a mapping process."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        if hasattr(os, "posix_fallocate"):  # a full disk is noticed before the work
            os.posix_fallocate(file.fileno(), 0, file.tell() + shape[0] * shape[1] * 4 + SEAL)
        for part in parts:
            rows = part.detach().cpu().contiguous().numpy().astype("<f4", copy=False).data
            digest.update(rows)
            file.write(rows)
        file.write(digest.digest())


def _open(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The table in `path`; None where there is none, or not a whole one of this shape."""
    try:
        table = np.lib.format.open_memmap(path, mode="c")  # "c": changes stay in this process
        with path.open("rb") as file:
            file.seek(-SEAL, os.SEEK_END)
            seal = file.read()
    except (OSError, ValueError, EOFError):
        return None
    whole = table.shape == shape and table.dtype == np.dtype("<f4") and table.flags.c_contiguous
    if not whole or hashlib.sha256(table.data).digest() != seal:
        return None
    with suppress(OSError):
        os.utime(path)  # the time of its last use
    return torch.from_numpy(table)


def _make_room(folder: Path, keep: Path) -> None:
    """Remove what was used longest ago until the folder holds no more than LIMIT; never `keep`.

    Who has a removed entry open keeps it: the file lives until the mapping ends.
    """
    entries = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process removed it
            if path.suffix in (".npy", ".tmp"):
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= LIMIT:
            return
        if path != keep:
            with suppress(OSError):
                path.unlink()
                total -= size
