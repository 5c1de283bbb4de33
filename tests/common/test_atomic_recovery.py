"""The previous result and the temporary folders after failed and killed runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.common.atomic import FINISHED, claim, tidy
from fsmerge_cli.common.own_files import write_list
from tests.support.output_folders import finish, refusing, tree


def test_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".run.99999999.tmp"
    (stale / "merged").mkdir(parents=True)
    (stale / "merged/model.safetensors").write_text("half")
    write_list(stale, finished=False)
    (tmp_path / ".run.lock").write_text("")
    finish(tmp_path / "run")
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "{}"}


@pytest.mark.parametrize("name", ["run.2", "run.old", "run[1]", "run"])
def test_the_temporary_folder_of_a_similar_name_is_kept(name: str, tmp_path: Path) -> None:
    with claim(tmp_path / name, overwrite=False) as temporary:
        (temporary / FINISHED).write_text("neighbour")
        finish(tmp_path / ("run" if name != "run" else "run.2"), "mine")
        assert (temporary / FINISHED).is_file()
    assert (tmp_path / name / FINISHED).read_text() == "neighbour"


def test_files_of_a_killed_run_are_removed_where_the_name_has_brackets(tmp_path: Path) -> None:
    (tmp_path / ".run[1].99999999.tmp").mkdir()
    finish(tmp_path / "run[1]")
    assert tree(tmp_path) == {"run[1]": None, f"run[1]/{FINISHED}": "{}"}


def test_the_old_result_survives_a_run_that_fails(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finish(folder, "old")

    def fail() -> None:
        with claim(folder, overwrite=True) as temporary:
            (temporary / FINISHED).write_text("half")
            assert (folder / FINISHED).read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "old"}


def test_the_old_result_survives_a_failure_of_the_last_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    finish(folder, "old")
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if Path(target) == folder and (path / FINISHED).read_text() == "new":
            raise OSError(28, "No space left on device", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with refusing(f"cannot write {folder}: No space left on device. Choose another output.dir=..."):
        finish(folder, "new", overwrite=True)
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "old"}


def test_the_old_result_survives_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finish(folder, "old")
    folder.rename(tmp_path / ".run.old.tmp")  # moved aside by a killed run
    (tmp_path / ".run.99999999.tmp").mkdir()
    with refusing(
        f"{folder} holds a finished run. Pass output.overwrite=true to replace it, "
        "or choose another output.dir=..."
    ):
        finish(folder, "new")
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "old"}


class KillError(BaseException):
    """Stands for a SIGKILL: nothing is deleted after it."""


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_any_moment_of_a_deletion_leaves_nothing_behind(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the folder that was replaced, or that a killed run had not finished."""
    real = {name: getattr(os, name) for name in ("unlink", "rmdir")}
    folder, left = tmp_path / "run", 0

    def write(content: str) -> None:
        with claim(folder, overwrite=overwrite) as temporary:
            for part in ("merged", "tasks/a", "tasks/b"):
                (temporary / part).mkdir(parents=True)
                (temporary / part / "config.json").write_text(content)
            (temporary / FINISHED).write_text(content)
            if not overwrite:
                raise RuntimeError  # the temporary folder is deleted

    def counted(name: str) -> Callable[..., None]:
        def delete(*args: Any, **options: Any) -> None:
            nonlocal left
            if not str(args[0]).endswith(".lock"):  # the system releases the lock of a killed process
                left -= 1
                if left < 0:
                    raise KillError
            real[name](*args, **options)

        return delete

    for moment in range(12):
        if overwrite:
            write("old")
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            left = moment
            with suppress(RuntimeError, KillError):
                write("new")
        for path in tmp_path.glob(".run.*.tmp"):  # that of another process
            if path.name != ".run.old.tmp":
                path.rename(tmp_path / ".run.99999999.tmp")
        if overwrite:
            tidy(folder)
            names = [FINISHED, "merged/config.json", "tasks/a/config.json", "tasks/b/config.json"]
            assert {name: (folder / name).read_text() for name in names} == dict.fromkeys(names, "new")
        else:
            finish(folder)
            shutil.rmtree(folder)
        assert [path.name for path in tmp_path.iterdir()] == (["run"] if overwrite else []), moment
        shutil.rmtree(folder, ignore_errors=True)
