"""A damaged training state is refused: no flipped byte, missing part or cut file leads to other weights."""

from __future__ import annotations

import json
import random
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
