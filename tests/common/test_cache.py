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
from fsmerge_cli.common.cache import feature_folder, stored

TABLE = torch.arange(12.0).reshape(4, 3).sqrt()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))


class Made:
    """Yields TABLE in two parts and counts how often it had to."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Iterator[Tensor]:
        self.times += 1
        yield TABLE[:3]
        yield TABLE[3:]


def entry(key: str = "key") -> Path:
    return feature_folder() / f"{key}.npy"


def test_a_table_is_made_once_and_then_mapped() -> None:
    make = Made()
    first, again = stored("key", (4, 3), make), stored("key", (4, 3), make)
    assert torch.equal(first, TABLE)
    assert torch.equal(again, TABLE)
    assert make.times == 1
    assert np.array_equal(np.load(entry()), TABLE.numpy())  # numpy reads it without us
    assert [path.name for path in feature_folder().iterdir()] == ["key.npy"]


def test_what_a_reader_changes_stays_with_the_reader() -> None:
    stored("key", (4, 3), Made()).zero_()
    assert torch.equal(stored("key", (4, 3), Made()), TABLE)


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off in the header": lambda data: data[:40],
    "cut off in the numbers": lambda data: data[:-50],
    "without its seal": lambda data: data[:-32],
    "another number": lambda data: data[:-40] + b"\x01" + data[-39:],
    "something else": lambda data: b"PK\x03\x04" + data[4:],
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_entry_is_made_again(how: str) -> None:
    stored("key", (4, 3), Made())
    good = entry().read_bytes()
    entry().write_bytes(SPOILED[how](good))
    make = Made()
    assert torch.equal(stored("key", (4, 3), make), TABLE)
    assert make.times == 1
    assert entry().read_bytes() == good


def test_an_entry_of_another_shape_is_made_again() -> None:
    stored("key", (4, 3), Made())
    assert stored("key", (2, 3), lambda: [TABLE[:2]]).shape == (2, 3)


def test_a_failure_leaves_nothing_behind() -> None:
    def fail() -> Iterator[Tensor]:
        yield TABLE[:3]
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        stored("key", (4, 3), fail)
    assert list(feature_folder().iterdir()) == []


def test_a_full_disk_is_noticed_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    make = Made()
    with pytest.raises(OSError, match="No space left"):
        stored("key", (4, 3), make)
    assert make.times == 0
    assert list(feature_folder().iterdir()) == []


def test_two_at_once_make_one_entry() -> None:
    make, inside = Made(), threading.Event()

    def slowly() -> Iterator[Tensor]:
        inside.set()
        time.sleep(0.1)
        return make()

    found: list[Tensor] = []
    one = threading.Thread(target=lambda: found.append(stored("key", (4, 3), slowly)))
    one.start()
    assert inside.wait(10)
    found.append(stored("key", (4, 3), make))
    one.join()
    assert make.times == 1
    assert torch.equal(found[0], found[1])


def test_the_oldest_use_goes_first_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for age, key in enumerate("abc"):
        stored(key, (4, 3), Made())
        os.utime(entry(key), (1000 + age, 1000 + age))
    stored("a", (4, 3), Made())  # used again
    monkeypatch.setattr(cache, "LIMIT", 3 * entry("a").stat().st_size)
    stored("d", (4, 3), Made())
    assert {path.stem for path in feature_folder().iterdir()} == {"a", "c", "d"}
    monkeypatch.setattr(cache, "LIMIT", 1)
    assert torch.equal(stored("e", (4, 3), Made()), TABLE)
    assert {path.stem for path in feature_folder().iterdir()} == {"e"}  # the newest one always stays
