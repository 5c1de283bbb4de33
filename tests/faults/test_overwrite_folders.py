"""A run replaces a folder only if all that it holds is ours and unchanged, and never what it reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.common import own_files
from fsmerge_cli.common.atomic import claim
from fsmerge_cli.common.errors import CertificateError, OutputError
from tests.support.folder_losses import LOSSES, READ
from tests.support.losses import (
    MERGE,
    Loss,
    check_refused,
    everything,
)


@pytest.mark.full
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_nothing_is_lost(case: Loss, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(case, place, capsys)


def test_the_home_folder_is_not_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(place / "images"))
    case = Loss(
        "home",
        lambda f: None,
        (*MERGE, 'output.dir="~"', "output.overwrite=true"),
        "{folder}/images contains files but no .fsmerge.json, so it is not replaced. Choose another "
        "output.dir=...",
    )
    check_refused(case, place, capsys)


def test_a_finished_run_is_replaced_whether_it_was_moved_or_parts_of_it_were_deleted(place: Path) -> None:
    (place / "out").rename(place / "moved")
    (place / "moved/report.html").unlink()
    shutil.rmtree(place / "moved/merged")
    assert (place / "moved/run.log").is_file()  # written after the list
    assert main([*MERGE, "output.dir=moved", "output.overwrite=true"]) == 0
    assert everything(place / "moved").keys() == everything(place / "other").keys()
    assert not [path.name for path in place.iterdir() if path.name.startswith(".")]


def test_python_knows_what_a_result_was_computed_from(place: Path) -> None:
    entries = [{"name": n, "checkpoint": f"{place}/out/merged", "head": n} for n in "ab"]
    result = merge(entries, method="average")
    before = everything(place)
    with pytest.raises(OutputError) as error:
        result.save(place / "out", overwrite=True)
    assert str(error.value) == READ.replace("{folder}", str(place)) % "source 'a'"
    assert everything(place) == before
    result.save(place / "other", overwrite=True)


def test_what_appears_in_a_folder_during_a_run_is_kept_and_so_is_the_result(place: Path) -> None:
    def run(name: str, overwrite: bool, change: Callable[[], object]) -> None:
        with claim(place / name, overwrite) as temporary:
            (temporary / "evaluation.json").write_text("new")
            change()

    def late(name: str, overwrite: bool, change: Callable[[], object]) -> str:
        with pytest.raises(OutputError) as error:
            run(name, overwrite, change)
        return str(error.value)

    changed = f"{place}/%s was changed while the run was writing (%s), so it is not replaced. The result is in %s."
    found = late("out", True, lambda: (place / "out/notes.txt").write_text("mine"))
    assert found == changed % ("out", "notes.txt", place / "out-new")
    assert (place / "out/notes.txt").read_text() == "mine"
    assert (place / "out-new/evaluation.json").read_text() == "new"
    (place / "out/notes.txt").unlink()
    found = late("out", True, lambda: (place / "out").rename(place / "gone") and (place / "out").symlink_to("a"))
    assert found == changed % ("out", "no folder", place / "out-new-2")
    assert (place / "out").is_symlink()
    found = late("fresh", False, lambda: shutil.copytree(place / "other", place / "fresh"))
    assert found == changed % ("fresh", "something has appeared there", place / "fresh-new")
    assert everything(place / "fresh") == everything(place / "other")
    found = late("file", False, lambda: (place / "file").write_text("mine"))
    assert found == changed % ("file", "something has appeared there", place / "file-new")
    assert (place / "file").read_text() == "mine"


def test_a_file_that_appears_while_the_old_result_is_deleted_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = own_files.not_ours

    def late(folder: Path, *more: object) -> list[str]:
        found = check(folder, *more)  # type: ignore[arg-type]
        if folder.name == ".out.old.tmp":
            (folder / "merged/notes.txt").write_text("mine")
        return found

    monkeypatch.setattr("fsmerge_cli.common.atomic.not_ours", late)
    with claim(place / "out", overwrite=True) as temporary:
        (temporary / "evaluation.json").write_text("new")
    assert (place / ".out.old.tmp/merged/notes.txt").read_text() == "mine"
    assert (place / "out/evaluation.json").read_text() == "new"


def test_an_earlier_failed_model_is_only_replaced_if_it_is_ours(place: Path) -> None:
    def run() -> None:
        with claim(place / "bad", overwrite=False) as temporary:
            (temporary / "evaluation.json").write_text("bad")
            raise CertificateError(["reloaded"])

    def fail() -> str:
        with pytest.raises(CertificateError) as error:
            run()
        return str(error.value)

    assert f"The written files are kept in {place}/bad.failed for" in fail()
    assert f"The written files are kept in {place}/bad.failed for" in fail()
    (place / "bad.failed/notes.txt").write_text("mine")
    with pytest.raises(OutputError) as error, claim(place / "bad", overwrite=False):
        pass
    assert str(error.value) == (
        f"{place}/bad.failed was not written by fsmerge (it holds notes.txt), and a run into {place}/bad would "
        "replace it. Move it away, or choose another output.dir=..."
    )


def test_a_list_without_files_stands_for_the_files_of_a_result_in_a_folder_being_written(tmp_path: Path) -> None:
    for name, ours in ((".out.123.tmp", True), ("out", False), (".out.old.tmp", False)):
        folder = tmp_path / name
        (folder / "merged").mkdir(parents=True)
        own_files.write_list(folder, finished=False)
        (folder / "config.yaml").touch()
        assert own_files.not_ours(folder) == ([] if ours else ["config.yaml", "merged/"])
        (folder / "notes.txt").write_text("mine")
        assert own_files.not_ours(folder) == (["notes.txt"] if ours else ["config.yaml", "merged/", "notes.txt"])
