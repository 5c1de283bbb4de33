from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fsmerge_cli.common import cache
from fsmerge_cli.common.cache import cached_table, feature_folder

TABLE = torch.arange(12.0).reshape(4, 3).sqrt()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))


class CountedTable:
    """Yields TABLE in two parts and counts the calls."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Iterator[Tensor]:
        self.times += 1
        yield TABLE[:3]
        yield TABLE[3:]


def entry(key: str = "key") -> Path:
    return feature_folder() / f"{key}.npy"


def test_a_table_is_computed_once_and_then_mapped() -> None:
    make = CountedTable()
    first, again = cached_table("key", (4, 3), make), cached_table("key", (4, 3), make)
    assert torch.equal(first, TABLE)
    assert torch.equal(again, TABLE)
    assert make.times == 1
    assert np.array_equal(np.load(entry()), TABLE.numpy())  # a plain .npy file
    assert [path.name for path in feature_folder().iterdir()] == ["key.npy"]


def test_changes_of_a_reader_are_not_written() -> None:
    cached_table("key", (4, 3), CountedTable()).zero_()
    assert torch.equal(cached_table("key", (4, 3), CountedTable()), TABLE)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated in the header": lambda data: data[:40],
    "truncated in the values": lambda data: data[:-50],
    "without its checksum": lambda data: data[:-32],
    "a changed byte": lambda data: data[:-40] + b"\x01" + data[-39:],
    "another file format": lambda data: b"PK\x03\x04" + data[4:],
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_entry_is_computed_again(how: str) -> None:
    cached_table("key", (4, 3), CountedTable())
    original = entry().read_bytes()
    entry().write_bytes(DAMAGED[how](original))
    make = CountedTable()
    assert torch.equal(cached_table("key", (4, 3), make), TABLE)
    assert make.times == 1
    assert entry().read_bytes() == original


def test_an_entry_of_another_shape_is_computed_again() -> None:
    cached_table("key", (4, 3), CountedTable())
    assert cached_table("key", (2, 3), lambda: [TABLE[:2]]).shape == (2, 3)


def test_a_failure_leaves_nothing_behind() -> None:
    def fail() -> Iterator[Tensor]:
        yield TABLE[:3]
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        cached_table("key", (4, 3), fail)
    assert list(feature_folder().iterdir()) == []


def test_a_full_disk_is_detected_before_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    make = CountedTable()
    with pytest.raises(OSError, match="No space left"):
        cached_table("key", (4, 3), make)
    assert make.times == 0
    assert list(feature_folder().iterdir()) == []


def test_two_threads_compute_one_entry() -> None:
    make, inside = CountedTable(), threading.Event()

    def slowly() -> Iterator[Tensor]:
        inside.set()
        time.sleep(0.1)
        return make()

    found: list[Tensor] = []
    one = threading.Thread(target=lambda: found.append(cached_table("key", (4, 3), slowly)))
    one.start()
    assert inside.wait(10)
    found.append(cached_table("key", (4, 3), make))
    one.join()
    assert make.times == 1
    assert torch.equal(found[0], found[1])


def test_the_least_recently_used_entry_is_removed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    (feature_folder() / "mine.npy").parent.mkdir(parents=True)
    (feature_folder() / "mine.npy").write_bytes(b"x" * 4096)  # not ours: neither counted nor removed
    a, b, c, d, e = (letter * 64 for letter in "abcde")
    for age, key in enumerate((a, b, c)):
        cached_table(key, (4, 3), CountedTable())
        os.utime(entry(key), (1000 + age, 1000 + age))
    cached_table(a, (4, 3), CountedTable())  # used again
    monkeypatch.setattr(cache, "LIMIT", 3 * entry(a).stat().st_size)
    cached_table(d, (4, 3), CountedTable())
    assert {path.stem for path in feature_folder().iterdir()} == {a, c, d, "mine"}
    monkeypatch.setattr(cache, "LIMIT", 1)
    assert torch.equal(cached_table(e, (4, 3), CountedTable()), TABLE)
    assert {path.stem for path in feature_folder().iterdir()} == {e, "mine"}  # the newest one always stays
