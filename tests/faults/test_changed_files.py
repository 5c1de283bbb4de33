"""A file of a finished run that is no longer as the run wrote it is named by what reads it, and not uploaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsmerge_cli import load_merged, load_source
from fsmerge_cli.cli import main
from fsmerge_cli.common.changed_files import of_model
from fsmerge_cli.common.errors import OutputError, SourceError
from fsmerge_cli.common.foreign_files import UnreadableError
from fsmerge_cli.evaluation.predictions import read_correct, write_correct
from fsmerge_cli.runs.push import repository_files
from tests.support.losses import OUT

NOTE = "not as the run wrote it (.fsmerge.json in {} has other checksums): {}"


def flip(file: Path) -> None:
    """Changes the last bit of a file: one value of a tensor."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_weights_with_a_flipped_bit_are_a_note(place: Path) -> None:
    assert load_merged("out").notes == ()
    flip(place / "out/merged/model.safetensors")
    (place / "out/merged/config.json").write_text((place / "out/merged/config.json").read_text() + " ")
    note = NOTE.format("out", "merged/config.json, merged/model.safetensors")
    assert load_merged("out").notes == (note,)
    assert load_merged("out/merged").notes == (note,)
    spec = {"name": "a", "checkpoint": "out/merged", "head": "a"}
    assert load_source(spec).notes == (f"'a': {note}",)
    own = NOTE.format("out", "merged/model.safetensors")
    assert load_source({"name": "a", "checkpoint": "out/merged/model.safetensors"}).notes[0] == f"'a': {own}"


def test_a_path_from_inside_the_folder_is_checked_as_well(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(place / "out/merged/model.safetensors")
    monkeypatch.chdir(place / "out/merged")
    note = NOTE.format("..", "merged/model.safetensors")
    assert of_model(Path(".")) == of_model(Path("model.safetensors")) == note
    assert of_model(Path("config.json")) is None


def test_a_missing_file_of_the_model_is_a_note(place: Path) -> None:
    (place / "out/report.html").unlink(missing_ok=True)  # no part of the model
    (place / "out/merged/README.md").write_text("mine")
    assert load_merged("out").notes == ()
    (place / "out/merged/heads.safetensors").unlink()
    assert load_source({"name": "a", "checkpoint": "out"}).notes[0] == (
        "'a': " + NOTE.format("out", "merged/heads.safetensors")
    )


def test_a_copy_without_the_list_has_no_note(place: Path) -> None:
    (place / "out/merged").rename(place / "copy")
    flip(place / "copy/model.safetensors")
    assert load_merged("copy").notes == ()


def test_a_changed_run_is_not_uploaded_but_its_card_may_be_edited(place: Path) -> None:
    (place / "out/merged/README.md").write_text("mine")
    assert repository_files(Path("out"))
    flip(place / "out/merged/model.safetensors")
    with pytest.raises(OutputError) as error:
        repository_files(Path("out"))
    assert str(error.value) == (
        "out holds files that were changed since the run wrote them, and nothing was uploaded: "
        "merged/model.safetensors. Restore them, or delete .fsmerge.json in it to upload the folder as it is."
    )
    (place / "out/.fsmerge.json").unlink()
    assert repository_files(Path("out"))


def test_resume_does_not_take_a_changed_run_for_finished(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out/run.log").write_text("mine")
    flip(place / "out/merged/model.safetensors")
    capsys.readouterr()
    assert main([*OUT, "resume=true"]) == 2
    assert capsys.readouterr().err == (
        f"fsmerge: error: resume=true: the finished run in out is "
        f"{NOTE.format('out', 'merged/model.safetensors')}. Restore it, or move the folder away and run the "
        "command again.\n"
    )


@pytest.mark.parametrize("name", ["merged/README.md", "report.html"])
def test_what_only_people_read_may_be_edited_or_deleted(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "out" / name
    assert file.is_file()
    file.write_text("mine")
    assert main([*OUT, "resume=true"]) == 0
    assert "already finished" in capsys.readouterr().out
    assert file.read_text() == "mine"
    assert repository_files(Path("out"))
    file.unlink()
    assert main([*OUT, "resume=true"]) == 0
    assert "already finished" in capsys.readouterr().out
    assert not file.exists()


@pytest.mark.parametrize("name", ["config.yaml", "evaluation.json", "merged/config.json"])
def test_other_files_of_a_finished_run_may_not_be_changed(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "out" / name
    file.write_bytes(file.read_bytes() + b"\n")
    assert main([*OUT, "resume=true"]) == 2
    assert NOTE.format("out", name) in capsys.readouterr().err


def test_a_run_without_its_card_is_not_uploaded(place: Path) -> None:
    (place / "out/merged/README.md").unlink()
    with pytest.raises(OutputError) as error:
        repository_files(Path("out"))
    assert str(error.value) == (
        "out has no merged/README.md, the card that the hub shows. Restore it, or write another one with front "
        "matter (https://huggingface.co/docs/hub/model-cards)."
    )


def test_compare_names_a_changed_evaluation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out/evaluation.json").write_text((place / "out/evaluation.json").read_text() + " ")
    assert main(["compare", "out", "other"]) == 0
    assert capsys.readouterr().err == f"note: {NOTE.format('out', 'evaluation.json')}\n"


ROW = {"tasks": {"a": {"count": 4, "top1": 0.75}}, "joint_top1": {"logits": 0.5}}
CORRECT = {"task.a": torch.tensor([1, 0, 1, 1]), "joint.logits": torch.tensor([1, 1, 0, 0])}


def byte(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_recorded_predictions_are_those_that_the_scores_count(tmp_path: Path) -> None:
    assert read_correct(tmp_path, ROW, "") == {}
    write_correct(tmp_path, CORRECT)
    found = read_correct(tmp_path, ROW, "")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in CORRECT.items()
    }


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("task.a", None),
        ("joint.logits", None),
        ("task.b", byte([1])),
        ("task.a", byte([1, 0, 1])),
        ("task.a", byte([1, 0, 0, 1])),
        ("task.a", byte([3, 0, 0, 0])),
        ("task.a", byte([1, 0, 1, 1])[None]),
        ("task.a", torch.tensor([1.0, 0.0, 1.0, float("nan")])),
        ("joint.logits", byte([1, 1, 1, 0])),
    ],
)
def test_other_predictions_are_refused(name: str, tensor: torch.Tensor | None, tmp_path: Path) -> None:
    tensors = {own: values.to(torch.uint8) for own, values in CORRECT.items()} | (
        {name: tensor} if tensor is not None else {}
    )
    if tensor is None:
        del tensors[name]
    save_file(tensors, tmp_path / "correct.safetensors")
    with pytest.raises(UnreadableError) as error:
        read_correct(tmp_path, ROW, "Leave it out.")
    assert str(error.value) == (
        f"{tmp_path}/correct.safetensors cannot be read: '{name}' in it is not what the evaluation.json beside it "
        "states. Leave it out."
    )


FACTS: dict[str, Any] = {"labels": {"a": ["x", "y", "z"], "b": ["x", "y", "z"]}}


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", "it should hold keys and values, and is []"),
        ('{"labels": {}, "labels": {}}', "a key is given twice"),
        ("[" * 5000, "it is nested too deeply"),
        ({**FACTS, "shift": {"a": 1}}, "it has 'shift', which this version of fsmerge does not know"),
        ({"labels": ["a", "b"]}, "labels should hold keys and values, and is ['a', 'b']"),
        ({"labels": {"a": "xyz"}}, "labels.a should be a list of texts, and is 'xyz'"),
        ({"labels": {"a": [1, 2, 3]}}, "labels.a should be a list of texts, and is [1, 2, 3]"),
        ({"labels": {"a": ["x", "y", "z"]}}, "labels has a, and the tensors are those of a, b"),
        ({"labels": {**FACTS["labels"], "c": ["x"]}}, "labels has a, b, c, and the tensors are those of a, b"),
        ({**FACTS, "normalize": ["c"]}, "normalize has c, and the tensors are those of a, b"),
        ({**FACTS, "temperatures": {"a": 1.0}}, "temperatures has a, and the tensors are those of a, b"),
        ({**FACTS, "temperatures": {"a": 0, "b": 1}}, "temperatures.a should be a positive number, and is 0"),
        (
            {**FACTS, "temperatures": {"a": True, "b": 1}},
            "temperatures.a should be a positive number, and is True",
        ),
        ({**FACTS, "shifts": {"a": float("nan"), "b": 0}}, "shifts.a should be a number, and is nan"),
        ({**FACTS, "layer_norm": {"a": -1e-5}}, "layer_norm.a should be a positive number, and is -1e-05"),
    ],
)
def test_metadata_of_heads_that_cannot_be_used_are_refused(facts: Any, why: str, place: Path) -> None:
    file = place / "out/merged/heads.safetensors"
    text = facts if isinstance(facts, str) else json.dumps(facts)
    save_file(load_file(file), file, metadata={"fsmerge": text})
    for read in (lambda: load_merged("out"), lambda: load_source({"name": "a", "checkpoint": "out", "head": "a"})):
        with pytest.raises(SourceError) as error:
            read()
        assert str(error.value).endswith(
            "out/merged: heads.safetensors: its metadata (key 'fsmerge': labels, temperatures, ...) cannot be "
            f"used: {why}. Restore the file, or remove that key to read the heads without labels."
        )
