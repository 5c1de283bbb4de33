"""Claiming an output folder: refusals and atomic publication."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from fsmerge_cli.common.atomic import FINISHED, claim
from fsmerge_cli.common.own_files import LIST
from tests.support.output_folders import finish, refusing, tree


def test_a_claimed_folder_appears_complete_and_without_temporary_files(tmp_path: Path) -> None:
    folder = tmp_path / "far/below/run"
    with claim(folder, overwrite=False) as temporary:
        (temporary / "merged").mkdir()
        (temporary / "merged/a").write_text("a")
        (temporary / FINISHED).write_text("{}")
        assert temporary.parent == folder.parent  # on one file system, so that the last rename is atomic
        assert not folder.exists()
    assert tree(tmp_path / "far") == {
        "below": None,
        "below/run": None,
        f"below/run/{FINISHED}": "{}",
        "below/run/merged": None,
        "below/run/merged/a": "a",
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        with claim(tmp_path / "far/below/run", overwrite=False) as temporary:
            (temporary / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert tree(tmp_path) == {}


def test_a_failed_run_keeps_parent_folders_that_existed_or_are_in_use(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()

    def fail(folder: str, neighbour: str) -> None:
        with claim(tmp_path / folder, overwrite=False):
            (tmp_path / neighbour).write_text("other")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail("there/run", "elsewhere")
    with pytest.raises(RuntimeError):
        fail("new/run", "new/neighbour")
    assert tree(tmp_path) == {"elsewhere": "other", "new": None, "new/neighbour": "other", "there": None}


@pytest.mark.parametrize(
    "error",
    [PermissionError("theirs"), FileExistsError("theirs"), NotADirectoryError("theirs"), OSError("theirs")],
)
def test_an_exception_of_the_run_itself_is_not_turned_into_an_output_error(error: OSError, tmp_path: Path) -> None:
    def fail() -> None:
        with claim(tmp_path / "run", overwrite=False):
            raise error

    with pytest.raises(OSError, match=r"^theirs$") as caught:
        fail()
    assert caught.value is error
    assert tree(tmp_path) == {}


def test_a_finished_folder_is_refused_or_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finish(folder, "old")
    with refusing(
        f"{folder} holds a finished run. Pass output.overwrite=true to replace it, "
        "or choose another output.dir=..."
    ):
        finish(folder, "new")
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "old"}
    finish(folder, "new", overwrite=True)
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "new"}


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    finish(tmp_path / "run", "new")
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_fsmerge_did_not_write_are_never_changed(overwrite: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with refusing(f"{folder} contains files but no {LIST}, so it is not replaced. Choose another output.dir=..."):
        finish(folder, "new", overwrite)
    assert tree(tmp_path) == {"run": None, "run/thesis.txt": "years of work"}


def test_files_of_the_cache_are_replaced_whatever_they_contain(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mark").write_text("without a list")
    for content in ("1", "2"):
        with claim(tmp_path / "run", overwrite=True, replaced=re.compile("mark")) as temporary:
            (temporary / "mark").write_text(content)
        assert tree(tmp_path) == {"run": None, "run/mark": content}
        (tmp_path / "run/mark").write_text("damaged")
    (tmp_path / "run/other").write_text("mine")
    with (
        refusing(
            f"{tmp_path}/run also holds what this run would delete and fsmerge did not write: other. Move it "
            "away, or choose another output.dir=..."
        ),
        claim(tmp_path / "run", overwrite=True, replaced=re.compile("mark")),
    ):
        pass
    assert tree(tmp_path) == {"run": None, "run/mark": "damaged", "run/other": "mine"}


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with refusing(f"{tmp_path}/file is a file, not a folder. Choose another output.dir=..."):
        finish(tmp_path / "file", overwrite=True)
    for below in ("file/run", "file/far/run"):
        with refusing(
            f"cannot make the folder {tmp_path}/{below}: a part of the path is a file. "
            "Choose another output.dir=..."
        ):
            finish(tmp_path / below)
    assert tree(tmp_path) == {"file": "mine"}


def test_a_second_claim_is_refused_and_the_first_continues(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claim(folder, overwrite=False) as temporary:
        (temporary / FINISHED).write_text("first")
        for overwrite in (False, True):
            with refusing(f"another run is writing {folder}. Wait for it, or choose another output.dir=..."):
                finish(folder, "second", overwrite)
        assert (temporary / FINISHED).read_text() == "first"
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "first"}


def test_of_two_threads_one_writes_and_the_other_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "far/run"
    held, done = threading.Event(), threading.Event()

    def first() -> None:
        with claim(folder, overwrite=False) as temporary:
            (temporary / FINISHED).write_text("first")
            held.set()
            assert done.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert held.wait(10)
        with refusing(f"another run is writing {folder}. Wait for it, or choose another output.dir=..."):
            finish(folder, "second", overwrite=True)
    finally:
        done.set()
        thread.join()
    assert tree(tmp_path) == {"far": None, "far/run": None, f"far/run/{FINISHED}": "first"}


def test_a_parent_folder_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "closed/run"
    make = Path.mkdir

    def denied(path: Path, *args: int, **kwargs: bool) -> None:
        if path.is_relative_to(folder.parent):
            raise PermissionError(13, "Permission denied", str(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", denied)
    with refusing(f"cannot write {folder.parent}: permission denied. Choose another output.dir=..."):
        finish(folder)
    assert tree(tmp_path) == {}


def test_a_name_that_the_system_does_not_accept_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "new" / ("x" * 300)
    with refusing(f"cannot write {folder}: File name too long. Choose another output.dir=..."):
        finish(folder)
    assert tree(tmp_path) == {}


def test_a_folder_is_written_through_a_link_above_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    finish(tmp_path / "link/run", "old")
    finish(tmp_path / "link/run", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "disk") == {"run": None, f"run/{FINISHED}": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_relative_folder_is_relative_to_the_initial_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with claim(Path("run"), overwrite=False) as temporary:
        (temporary / FINISHED).write_text("{}")
        (tmp_path / "elsewhere").mkdir()
        os.chdir(tmp_path / "elsewhere")
    assert tree(tmp_path) == {"elsewhere": None, "run": None, f"run/{FINISHED}": "{}"}
