from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.atomic import FINISHED, claim, write_json
from fsmerge_cli.common.errors import OutputError
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.sources import mlp_source


def finish(folder: Path, content: str = "{}", overwrite: bool = False) -> None:
    with claim(folder, overwrite) as temporary:
        (temporary / FINISHED).write_text(content)


def tree(folder: Path) -> dict[str, str | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def refusing(message: str) -> Iterator[None]:
    with pytest.raises(OutputError) as error:
        yield
    assert str(error.value) == message


def test_a_claimed_folder_appears_whole_and_with_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "far/below/run"
    with claim(folder, overwrite=False) as temporary:
        (temporary / "merged").mkdir()
        (temporary / "merged/a").write_text("a")
        (temporary / FINISHED).write_text("{}")
        assert temporary.parent == folder.parent  # one file system, so that the last rename is one step
        assert not folder.exists()
    assert tree(tmp_path / "far") == {
        "below": None,
        "below/run": None,
        f"below/run/{FINISHED}": "{}",
        "below/run/merged": None,
        "below/run/merged/a": "a",
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_nothing_at_all(error: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        with claim(tmp_path / "far/below/run", overwrite=False) as temporary:
            (temporary / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert tree(tmp_path) == {}


def test_a_failed_run_keeps_parents_that_were_there_or_are_in_use(tmp_path: Path) -> None:
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
def test_an_error_of_the_run_itself_is_not_blamed_on_the_folder(error: OSError, tmp_path: Path) -> None:
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
    (folder / "extra").write_text("of the old run")
    finish(folder, "new", overwrite=True)
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "new"}


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    finish(tmp_path / "run", "new")
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_somebody_else_are_never_touched(overwrite: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with refusing(
        f"{folder} holds other files (no {FINISHED}), so it is left alone. Choose another output.dir=..."
    ):
        finish(folder, "new", overwrite)
    assert tree(tmp_path) == {"run": None, "run/thesis.txt": "years of work"}


def test_the_mark_of_a_finished_folder_can_be_another_file(tmp_path: Path) -> None:
    with claim(tmp_path / "run", overwrite=False, finished="mark") as temporary:
        (temporary / "mark").write_text("1")
    with claim(tmp_path / "run", overwrite=True, finished="mark") as temporary:
        (temporary / "mark").write_text("2")
    assert tree(tmp_path) == {"run": None, "run/mark": "2"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
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


def test_a_claim_inside_a_claim_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claim(folder, overwrite=False) as temporary:
        (temporary / FINISHED).write_text("first")
        for overwrite in (False, True):
            with refusing(f"another run is writing {folder}. Wait for it, or choose another output.dir=..."):
                finish(folder, "second", overwrite)
        assert (temporary / FINISHED).read_text() == "first"
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "first"}


def test_of_two_threads_one_writes_and_the_other_is_told(tmp_path: Path) -> None:
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


def test_what_a_killed_run_left_is_cleaned_up(tmp_path: Path) -> None:
    stale = tmp_path / ".run.99999999.tmp"
    (stale / "merged").mkdir(parents=True)
    (stale / "merged/half").write_text("half")
    (tmp_path / ".run.lock").write_text("")
    finish(tmp_path / "run")
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "{}"}


@pytest.mark.parametrize("name", ["run.2", "run.old", "run[1]", "run"])
def test_a_neighbours_unfinished_folder_is_not_taken_for_ones_own(name: str, tmp_path: Path) -> None:
    with claim(tmp_path / name, overwrite=False) as temporary:
        (temporary / FINISHED).write_text("neighbour")
        finish(tmp_path / ("run" if name != "run" else "run.2"), "mine")
        assert (temporary / FINISHED).is_file()
    assert (tmp_path / name / FINISHED).read_text() == "neighbour"


def test_a_folder_with_brackets_in_its_name_is_cleaned_up_too(tmp_path: Path) -> None:
    (tmp_path / ".run[1].99999999.tmp").mkdir()
    finish(tmp_path / "run[1]")
    assert tree(tmp_path) == {"run[1]": None, f"run[1]/{FINISHED}": "{}"}


def test_a_parent_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_name_that_the_system_does_not_take_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "new" / ("x" * 300)
    with refusing(f"cannot write {folder}: File name too long. Choose another output.dir=..."):
        finish(folder)
    assert tree(tmp_path) == {}


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


def test_the_old_result_survives_a_failure_of_the_very_last_step(
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
    folder.rename(tmp_path / ".run.old.tmp")  # where a killed run had put it
    (tmp_path / ".run.99999999.tmp").mkdir()
    with refusing(
        f"{folder} holds a finished run. Pass output.overwrite=true to replace it, "
        "or choose another output.dir=..."
    ):
        finish(folder, "new")
    assert tree(tmp_path) == {"run": None, f"run/{FINISHED}": "old"}


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    finish(tmp_path / "disk/run", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk/run")
    finish(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "disk") == {"run": None, f"run/{FINISHED}": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_relative_folder_is_meant_from_where_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with claim(Path("run"), overwrite=False) as temporary:
        (temporary / FINISHED).write_text("{}")
        (tmp_path / "elsewhere").mkdir()
        os.chdir(tmp_path / "elsewhere")
    assert tree(tmp_path) == {"elsewhere": None, "run": None, f"run/{FINISHED}": "{}"}


def test_a_model_is_read_back_bit_for_bit_and_written_again_byte_for_byte(tmp_path: Path) -> None:
    source = mlp_source("task", [6, 5], 3, norm="batch")
    assert source.head is not None
    heads = {"task": source.head, "bare": Head(torch.randn(2, 5), None, ("ü", "no"))}
    config = model_config(source.family, source.arch)
    write_model(tmp_path / "one", config, source.weights, *head_tensors(heads))
    first = load(SourceSpec("task", checkpoint=str(tmp_path / "one"), head="task"))
    bare = load(SourceSpec("bare", checkpoint=str(tmp_path / "one"), head="bare"))
    assert first.head is not None
    assert bare.head is not None
    assert (first.arch, first.head.labels) == (source.arch, source.head.labels)
    assert first.weights.keys() == source.weights.keys()
    assert all(torch.equal(first.weights[name], tensor) for name, tensor in source.weights.items())
    assert torch.equal(first.head.weight, source.head.weight)
    assert (bare.head.bias, bare.head.labels) == (None, ("ü", "no"))
    shuffled = dict(reversed(first.weights.items()))
    tensors, facts = head_tensors({"task": first.head, "bare": bare.head})
    write_model(tmp_path / "two", config, shuffled, dict(reversed(tensors.items())), facts)
    for name in ("config.json", "model.safetensors", "heads.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_weights_that_share_memory_are_written_each(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_model(tmp_path, {}, {"a": whole, "b": whole.T, "c": whole[1:]}, {}, {})
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["a"], whole)
    assert torch.equal(stored["b"], whole.T)
    assert torch.equal(stored["c"], whole[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_json_is_strict_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"task": "fünf", "value": 0.5})
    assert (tmp_path / "a.json").read_text() == '{\n  "task": "fünf",\n  "value": 0.5\n}\n'
    assert json.loads((tmp_path / "a.json").read_text()) == {"task": "fünf", "value": 0.5}
    with pytest.raises(ValueError, match=r"^Out of range float values are not JSON compliant"):
        write_json(tmp_path / "b.json", {"loss": float("nan")})
    assert not (tmp_path / "b.json").exists()
