"""The output files of one command appear together or not at all, so that it can be given again after a stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.common import output_files
from fsmerge_cli.common.errors import OutputError, Stopped
from fsmerge_cli.common.output_files import write_files
from tests.support.losses import everything


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), Stopped(), SystemExit()], ids=repr)
@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("moment", ["first", "second", "names"])
@pytest.mark.parametrize("old", [True, False], ids=["replaced", "new"])
def test_files_that_belong_together_appear_together_or_not_at_all(
    old: bool, moment: str, links: bool, stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed, replace = output_files._place, Path.replace

    def place_one(temporary: Path, path: Path) -> None:
        if path.name == "two" and moment == "names":
            raise stop
        placed(temporary, path)

    def replace_one(temporary: Path, path: Path) -> Path:
        if path.name == "two" and moment == "names" and path.read_text() == "old":
            raise stop
        return replace(temporary, path)

    def no_links(*paths: Path) -> None:
        raise OSError(1, "Operation not permitted")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        if moment == "first" or (moment == "second" and temporary.name.startswith(".two")):
            raise stop

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(output_files, "_place", place_one)
    monkeypatch.setattr(Path, "replace", replace_one)
    for name in ("one", "two") if old else ():
        (tmp_path / name).write_text("old")
    before = everything(tmp_path)
    files = {key: (tmp_path / key, write) for key in ("one", "two")}
    with pytest.raises((OutputError, Stopped, SystemExit)):
        write_files(files, overwrite=old)
    assert everything(tmp_path) == before
    monkeypatch.setattr(output_files, "_place", placed)
    monkeypatch.setattr(Path, "replace", replace)
    write_files({key: (path, lambda temporary: None) for key, (path, _) in files.items()}, overwrite=old)
    assert everything(tmp_path).keys() == before.keys() | {"one", "two"}


@pytest.mark.parametrize("old", [True, False], ids=["replaced", "new"])
def test_a_signal_at_any_moment_leaves_no_temporary_file(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every change of the file system; signals during a clean-up are handled at its end."""
    left = 0

    def handle(number: int, frame: object) -> None:
        raise Stopped(number)

    def signalled(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **options)

        return call

    for owner, name in ((os, "unlink"), (os, "link"), (os, "open"), (os, "replace")):
        monkeypatch.setattr(owner, name, signalled(getattr(owner, name)))
    before = signal.signal(signal.SIGTERM, handle)
    stopped = 0
    try:
        for moment in range(1, 30):
            for name in ("one", "two"):
                (tmp_path / name).unlink(missing_ok=True)
                if old:
                    (tmp_path / name).write_text("old")
            left = moment
            try:
                write_files({n: (tmp_path / n, lambda path: path.write_text("new")) for n in ("one", "two")}, old)
            except Stopped:
                stopped += 1
            left = 0
            found = {path.name: path.read_text() for path in tmp_path.iterdir()}
            assert found in [dict.fromkeys(("one", "two"), "new"), {"one": "old", "two": "old"} if old else {}], (
                moment
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped > 4
