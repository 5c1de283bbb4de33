"""A damaged training state is refused: no flipped byte, missing part or cut file leads to other weights."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import OutputError
from fsmerge_cli.common.progress import Event
from fsmerge_cli.training.snapshots import state_folder
from fsmerge_cli.training.state_file import read_state, write_state

TENSORS = {
    "student.weight": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)),
    "optimiser.0.step": torch.tensor(3.0),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.empty(0),
    "mask": torch.tensor([True, False]),
}
METADATA = {"step": 3, "losses": [0.5, 0.25], "random": {"python": [3, [1, 2], None]}}


def everything(name: str) -> bool:
    return True


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "training1.safetensors"
    write_state(path, TENSORS, METADATA)
    return path


def same(found: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> bool:
    tensors, metadata = found
    equal = all(torch.equal(tensors[n], t) and tensors[n].dtype == t.dtype for n, t in TENSORS.items())
    return equal and tensors.keys() == TENSORS.keys() and metadata == METADATA


def test_a_state_is_read_as_it_was_written(state: Path) -> None:
    assert same(read_state(state, everything))
    part, _ = read_state(state, lambda name: name.startswith("student."))
    assert part.keys() == {"student.weight"}


def test_no_flipped_bit_is_read_as_another_state(state: Path) -> None:
    content = state.read_bytes()
    refused = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << random.Random(place).randrange(8)
        state.write_bytes(changed)
        try:
            found = read_state(state, everything)
        except OutputError:
            refused += 1
        else:
            assert same(found), place
    assert refused > 0.9 * len(content)  # what is left over is the padding of the header


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_file_that_was_cut_is_refused(state: Path, size: int) -> None:
    state.write_bytes(state.read_bytes()[:size])
    with pytest.raises(OutputError, match="is damaged"):
        read_state(state, everything)


def test_a_missing_tensor_is_refused_with_the_whole_message(state: Path) -> None:
    with safe_open(state, framework="pt") as file:
        header = file.metadata()
    save_file({n: t for n, t in TENSORS.items() if n != "mask"}, state, metadata=header)
    with pytest.raises(OutputError) as error:
        read_state(state, everything)
    assert str(error.value) == (
        f"the saved state of the interrupted run is damaged ({state}: it does not have the tensors that were "
        "saved), so it cannot be resumed. Start again with resume=false output.overwrite=true."
    )


def test_a_state_of_another_version_is_refused(state: Path) -> None:
    save_file(TENSORS, state, metadata={"fsmerge": json.dumps(METADATA)})
    with pytest.raises(OutputError, match="is damaged"):
        read_state(state, everything)


RUN = ["merge", "+models=digits_mlp_trio", "method=kd", "method.steps=20", "checkpoint.every=4", "--quiet"]
RUN += ["data.images_per_task=40"]
FIRST, SECOND, ALL = "training1.safetensors", "training2.safetensors", "run.json"
Spoil = Callable[[Path], object]


def flipped(name: str, place: int = -9) -> Spoil:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return spoil


def cut(name: str, size: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def moved(name: str, target: str) -> Spoil:
    return lambda folder: (folder / name).rename(folder / target)


def linked(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return spoil


def replaced(name: str, make: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def of_another_run(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder.parent / ".other.state" / FIRST).read_bytes())


DAMAGED = (
    "the saved state of the interrupted run is damaged ({state}/%s: %s), so it cannot be resumed. Start again "
    "with resume=false output.overwrite=true."
)
FOREIGN = (
    "{state} was not written by fsmerge (it holds %s), and a run into {out} would replace it. Move it away, or "
    "choose another output.dir=..."
)
OTHER = "it belongs to another run or another training"
SPOILT: dict[str, tuple[Spoil, str | None]] = {
    "a flipped byte": (flipped(FIRST), DAMAGED % (FIRST, "*")),
    "a flipped byte of the header": (flipped(FIRST, 200), DAMAGED % (FIRST, "*")),
    "a flipped byte of the options": (flipped(ALL, 1), DAMAGED % (ALL, "it cannot be read")),
    "cut": (cut(FIRST, 1000), DAMAGED % (FIRST, "*")),
    "empty": (cut(FIRST, 0), DAMAGED % (FIRST, "*")),
    "options cut": (cut(ALL, 20), DAMAGED % (ALL, "it cannot be read")),
    "options empty": (cut(ALL, 0), DAMAGED % (ALL, "it cannot be read")),
    "options that are a list": (replaced(ALL, lambda path: path.write_text("[]")), DAMAGED % (ALL, "*")),
    "options missing": (moved(ALL, "../elsewhere"), DAMAGED % (ALL, "it cannot be read")),
    "training missing": (moved(FIRST, "../elsewhere"), None),
    "another training": (moved(FIRST, SECOND), None),
    "the training of another run": (of_another_run, DAMAGED % (FIRST, OTHER)),
    "a link": (linked(FIRST), FOREIGN % FIRST),
    "options a link": (linked(ALL), FOREIGN % ALL),
    "a pipe": (replaced(FIRST, os.mkfifo), FOREIGN % FIRST),
    "options a pipe": (replaced(ALL, os.mkfifo), FOREIGN % ALL),
    "a folder": (replaced(FIRST, Path.mkdir), FOREIGN % f"{FIRST}/"),
    "a file of somebody": (lambda folder: (folder / "notes").touch(), FOREIGN % "notes"),
}
"""What happened to a state -> the message; None: the missing training starts anew, with the same result."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the states of two interrupted runs, `out` and `other`."""
    from fsmerge_cli.reporting import terminal

    shown = terminal.Reporter.__call__

    def stop(self: Any, event: Event) -> None:
        shown(self, event)
        if event.phase == "train" and event.done == 9:
            raise KeyboardInterrupt

    place = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal.Reporter, "__call__", stop)
        for name, seed in (("out", 0), ("other", 1)):
            assert main([*RUN, f"seed={seed}", f"output.dir={place}/{name}"]) == 130
    return place


@pytest.mark.full
@pytest.mark.parametrize("name", SPOILT)
def test_a_state_that_is_not_as_it_was_saved_is_one_message(
    name: str, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = SPOILT[name]
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    out, state = tmp_path / "out", tmp_path / ".out.state"
    spoil(state)
    left = sorted(path.name for path in state.iterdir())
    capsys.readouterr()
    code = main([*RUN, "seed=0", f"output.dir={out}", "resume=true"])
    if message is None:
        assert code == 0
        assert main([*RUN, "seed=0", f"output.dir={tmp_path}/whole"]) == 0
        model = "merged/model.safetensors"
        assert (out / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
        return
    assert code == 2
    found = capsys.readouterr().err.splitlines()[0]
    expected = f"fsmerge: error: {message.format(state=state, out=out)}"
    assert re.fullmatch(re.escape(expected).replace(re.escape("*"), ".+"), found), found
    assert not out.exists()
    assert sorted(path.name for path in state.iterdir()) == left


@pytest.mark.full
@pytest.mark.parametrize("part", ["training1.safetensors", "run.json"])
def test_the_command_refuses_a_damaged_state_and_can_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    from fsmerge_cli.reporting import terminal

    shown = terminal.Reporter.__call__

    def stop(self: Any, event: Event) -> None:
        shown(self, event)
        if event.phase == "train" and event.done == 9:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    run = ["merge", "+models=digits_mlp_pair", "method=kd", "method.steps=20", "checkpoint.every=4", "--quiet"]
    run.append(f"output.dir={out}")
    with monkeypatch.context() as patch:
        patch.setattr(terminal.Reporter, "__call__", stop)
        assert main(run) == 130
    path = state_folder(out) / part
    content = path.read_bytes()
    path.write_bytes(
        content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if part != "run.json" else content[:-9]
    )
    capsys.readouterr()
    assert main([*run, "resume=true"]) == 2
    found, log = capsys.readouterr().err.splitlines()
    assert found.startswith(f"fsmerge: error: the saved state of the interrupted run is damaged ({path}: ")
    assert found.endswith("so it cannot be resumed. Start again with resume=false output.overwrite=true.")
    assert log.startswith("fsmerge: the log is ")
    assert not out.exists()
    assert main([*run, "output.overwrite=true"]) == 0
    assert (out / "evaluation.json").is_file()
