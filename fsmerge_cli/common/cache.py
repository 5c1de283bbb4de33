"""The user's cache folder, and the feature tables in it, each under the hash of what it was computed from."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from fsmerge_cli.common.errors import ConfigError, reason
from fsmerge_cli.common.foreign_files import require_regular
from fsmerge_cli.common.locking import locked
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.common.shown import shortened

if TYPE_CHECKING:  # the folder is asked for by commands that need no torch
    from torch import Tensor

LIMIT = 10 * 2**30
"""Maximum size of the feature cache in bytes; the least recently used entries are removed first."""

ENTRY = re.compile(r"[0-9a-f]{32,}\.(npy|tmp)")
"""Names of entries; other files in the folder are not ours."""

CHECKSUM_BYTES = hashlib.sha256().digest_size
"""Length of the SHA-256 checksum at the end of an entry."""


def cache_folder() -> Path:
    """The folder of embedded sources and features: `FSMERGE_CACHE`, or the user's cache folder.

    Raises ConfigError where that is no valid path.
    """
    path = os.environ.get("FSMERGE_CACHE")
    try:
        folder = Path(path).expanduser() if path else platformdirs.user_cache_path("fsmerge")
        folder.exists()
        return folder
    except (OSError, RuntimeError) as error:  # too long, without permission, ~ of an unknown user
        raise ConfigError(
            f"FSMERGE_CACHE={shortened(str(path))} cannot be used ({reason(error)}). Pass another path."
        ) from None


def feature_folder() -> Path:
    """The folder of cached features; it may be deleted at any time."""
    return cache_folder() / "features"


def cached_table(key: str, shape: tuple[int, int], make: Callable[[], Iterable[Tensor]]) -> Tensor:
    """The memory-mapped fp32 table [n, d] under `key`: read from the cache, or computed and written.

    make: yields consecutive rows in batches, [m, d] on any device. A truncated entry, or one whose checksum does
    not match, is computed again. A second process waits for the first. Raises OSError where the folder cannot be
    written or the disk is full, and whatever `make` raises; no partial entry is left behind.
    """
    folder = feature_folder()
    path = folder / f"{key}.npy"
    found = _open(path, shape)  # needs neither a lock nor write access: entries appear atomically
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    for own in (folder, *(path.with_suffix(suffix) for suffix in (".npy", ".lock", ".tmp"))):
        if own.is_symlink():
            raise OSError(f"{own} is a link")
    with locked(path.with_suffix(".lock"), wait=True):
        found = _open(path, shape)
        if found is not None:
            return found
        temporary = path.with_suffix(".tmp")
        try:
            _write(temporary, shape, make())
            made = _open(temporary, shape)
            if made is None:
                raise OSError(f"{temporary} cannot be read back as written")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    _make_room(folder, keep=path)
    return made


def try_cached_table(
    key: str, shape: tuple[int, int], make: Callable[[], Iterable[Tensor]], progress: Progress
) -> Tensor | None:
    """The table as by :func:`cached_table`; None, and an event, where the cache cannot be written."""
    try:
        return cached_table(key, shape, make)
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        why = f"{feature_folder()} cannot be written ({getattr(error, 'strerror', None) or error})"
        progress(
            Event(f"features are kept in memory: {why}; set FSMERGE_CACHE=FOLDER to use another folder", 1, 1)
        )
        return None


def _write(path: Path, shape: tuple[int, int], parts: Iterable[Tensor]) -> None:
    """NumPy's .npy format plus a checksum. Not written by a memory map: a full disk would kill the process."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        if hasattr(os, "posix_fallocate"):  # a full disk is detected before the computation
            os.posix_fallocate(file.fileno(), 0, file.tell() + shape[0] * shape[1] * 4 + CHECKSUM_BYTES)
        for part in parts:
            rows = part.detach().cpu().contiguous().numpy().astype("<f4", copy=False).data
            digest.update(rows)
            file.write(rows)
        file.write(digest.digest())


def _open(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The table in `path`; None where it is missing, damaged or of another shape."""
    try:
        require_regular(path)
        table = np.lib.format.open_memmap(path, mode="c")  # "c": changes stay in this process
        with path.open("rb") as file:
            file.seek(-CHECKSUM_BYTES, os.SEEK_END)
            checksum = file.read()
    except (OSError, ValueError, EOFError):
        return None
    valid = table.shape == shape and table.dtype == np.dtype("<f4") and table.flags.c_contiguous
    if not valid or hashlib.sha256(table.data).digest() != checksum:
        return None
    with suppress(OSError):
        os.utime(path)  # record the last use
    import torch

    return torch.from_numpy(table)


def _make_room(folder: Path, keep: Path) -> None:
    """Remove the least recently used entries until the folder is within LIMIT; never `keep`.

    A process that has a removed entry mapped can still read it.
    """
    entries = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process removed it
            if ENTRY.fullmatch(path.name):
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= LIMIT:
            return
        if path != keep:
            with suppress(OSError):
                path.unlink()
                total -= size
