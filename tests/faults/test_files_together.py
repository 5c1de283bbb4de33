"""The output files of one command appear together or not at all, so that it can be given again after a stop."""

from __future__ import annotations

import os
from pathlib import Path

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
