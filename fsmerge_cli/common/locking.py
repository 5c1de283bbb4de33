"""Locks between processes: held, or the reason why there can be none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

CHECK = 5.0
"""Seconds after which a waiting process looks whether the lock is held at all."""


@contextmanager
def locked(path: Path, wait: bool, remove: bool = True) -> Iterator[None]:
    """Hold the lock file `path`. Its file is removed (remove) while the lock is held, which filelock 4 detects.

    Raises filelock.Timeout only where another process holds the lock (wait: waits for it instead), and OSError
    where there can be no lock: filelock takes a file that cannot be made, or a refused flock, for a held lock.
    """
    lock = FileLock(path)
    _acquire(lock, path, wait)
    try:
        yield
    finally:
        if remove:
            with suppress(OSError):  # systems that cannot remove open files keep the empty file
                if not path.stat().st_size:  # a lock of ours is empty
                    path.unlink()
        lock.release()


def _acquire(lock: FileLock, path: Path, wait: bool) -> None:
    existed = os.path.lexists(path)
    while True:
        try:
            lock.acquire(timeout=CHECK if wait else 0)
            return
        except Timeout as busy:
            error: OSError = _no_holder(path) or busy
        except OSError as refused:
            error = refused
        if wait and isinstance(error, Timeout):
            continue
        if not existed and not isinstance(error, Timeout):  # made by filelock, which could not lock it
            with suppress(OSError):
                path.unlink()
        raise error


def _no_holder(path: Path) -> OSError | None:
    """Why the lock cannot be taken, if it is for another reason than that somebody holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        return error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()  # its holder has just finished
    except BlockingIOError:
        return None
    except OSError as error:
        return error
    finally:
        os.close(file)
    return None
