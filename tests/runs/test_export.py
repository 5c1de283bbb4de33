"""Exported files run without this package and give the logits of the model; wrong calls are refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import load_merged, merge
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import CertificateError, ConfigError, OutputError
from fsmerge_cli.common.inputs import NamedTensors
from fsmerge_cli.common.output_files import check_files
from fsmerge_cli.runs import export
from tests.support.encoders import CLASSIFIERS, TOPIC, save_encoder, sentence_pair, sentence_source
from tests.support.evaluations import timm_folder


def expected_logits(run: Path, pixels: torch.Tensor, task: str | None) -> torch.Tensor:
    model = load_merged(run)
    if task is not None:
        return model.logits(pixels, task)
    with torch.no_grad():
        features = model.backbone(pixels)
        return torch.cat([head.joint_logits(features) for head in model.heads.values()], 1)


@pytest.mark.full
@pytest.mark.parametrize("task", [None, "low"])
def test_a_torch_program_has_the_logits_of_the_model(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--task", task, "--output", "run.pt2"] if task else []
    assert main(["export", str(digits_run), "--format", "torch", *more]) == 0
    labels = {"labels.json": ""}
    program = torch.export.load(tmp_path / "run.pt2", extra_files=labels)
    pixels = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(program.module()(pixels), expected_logits(digits_run, pixels, task))
    names = list("01234") if task else list("0123456789")
    assert [label.rpartition(": ")[2] for label in json.loads(labels["labels.json"])] == names
    assert main(["export", str(digits_run), "--format", "torch", *more]) == 2  # the file exists
    assert check_files({"--output ": "run.pt2"}, (), overwrite=True)  # it is known as one of ours
    with zipfile.ZipFile(tmp_path / "run.pt2") as own, zipfile.ZipFile(tmp_path / "other.pt2", "w") as other:
        for name in own.namelist():
            if not name.endswith("/extra/fsmerge.json"):
                other.writestr(name, own.read(name))
    with pytest.raises(OutputError, match=r"other\.pt2 holds weights of a model, so it is not replaced"):
        check_files({"--output ": "other.pt2"}, (), overwrite=True)


@pytest.mark.full
def test_the_file_has_the_whole_name_of_the_run_and_notes_go_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    timm_folder(tmp_path / "run-0.5", pretrained_cfg={"input_size": [3, 8, 8]})
    assert main(["export", "run-0.5", "--format", "torch"]) == 0
    assert (tmp_path / "run-0.5.pt2").is_file()
    notes = load_merged("run-0.5").notes
    assert notes
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")] == [
        f"note: {note}" for note in notes
    ]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_onnxruntime_gives_the_logits_of_the_model(digits_run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "run.onnx"
    assert main(["export", str(digits_run), "--format", "onnx", "--output", str(file)]) == 0
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pixels = torch.rand(5, 1, 8, 8)
    (found,) = session.run(["logits"], {"pixels": pixels.numpy()})
    expected = expected_logits(digits_run, pixels, None)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    assert len(labels) == expected.shape[1]


@pytest.mark.full
def test_a_file_that_differs_from_the_model_is_not_kept(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.export.load

    def changed(file: io.BytesIO) -> object:
        program = load(file)
        next(iter(program.state_dict.values())).add_(1)
        return program

    monkeypatch.setattr(torch.export, "load", changed)
    model = export.prepared(load_merged(digits_run), None)
    with pytest.raises(CertificateError, match=r"exported: logits of x.pt2 = those of the model; largest error"):
        export.write(model, "torch", tmp_path / "x.pt2")
    file = tmp_path / "run.pt2"
    assert main(["export", str(digits_run), "--format", "torch", "--output", str(file)]) == 1
    assert not file.exists()


@pytest.mark.full
def test_wrong_calls_are_refused(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        export.require_packages("onnx")
    assert str(error.value) == (
        "--format onnx needs the packages onnx and onnxscript, not installed. Install: pip install onnx onnxscript"
    )
    assert main(["export", str(digits_run)]) == 2
    assert "required: --format. See fsmerge export --help." in capsys.readouterr().err
    assert main(["export", str(digits_run), "--format", "torch", "--task", "hgh"]) == 2
    assert "unknown task 'hgh'. Did you mean 'high'?" in capsys.readouterr().err
    inside = digits_run / "merged/x.pt2"
    assert main(["export", str(digits_run), "--format", "torch", "--output", str(inside)]) == 2


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    data = {"name": "sentences", "images_per_task": 4}
    merge(sentence_pair(folder, "BERT"), method="average", data=data, output=folder / "run")
    return folder / "run"


def tokens(model: Any, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Random tokens of any batch and length, with padding at the end."""
    rows, length = shape
    random = torch.Generator().manual_seed(rows)
    ids = torch.randint(model.arch.vocab_size, (rows, length), generator=random)
    mask = (torch.arange(length)[None] < torch.randint(1, length + 1, (rows, 1), generator=random)).long()
    names = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": (ids % 2) * mask}
    return names if model.arch.types > 1 else {n: t for n, t in names.items() if n != "token_type_ids"}


def text_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    zeros = torch.zeros_like(inputs["input_ids"])
    features = model.backbone(NamedTensors({"token_type_ids": zeros, **inputs}))
    return torch.cat([head.joint_logits(features) for head in model.heads.values()], 1)


SHAPES = [(1, 7), (4, 33), (2, 66)]


@pytest.mark.full
def test_a_torch_program_of_a_text_encoder_takes_every_batch_and_length(text_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.pt2"
    assert main(["export", str(text_run), "--format", "torch", "--output", str(file)]) == 0
    model, program = load_merged(text_run), torch.export.load(file).module()
    for shape in SHAPES:
        inputs = tokens(model, shape)
        torch.testing.assert_close(program(*inputs.values()), text_logits(model, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_onnxruntime_gives_the_logits_of_a_text_encoder(variant: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, file = save_encoder(tmp_path / "own", sentence_source(variant, 1, TOPIC)), tmp_path / "run.onnx"
    assert main(["export", str(folder), "--format", "onnx", "--output", str(file)]) == 0
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    model = load_merged(folder)
    assert [own.name for own in session.get_inputs()] == list(tokens(model, (1, 2)))
    for shape in ((1, 7), (4, 33), (2, model.arch.longest)):
        inputs = tokens(model, shape)
        (found,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(found), text_logits(model, inputs), rtol=1e-4, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == list(TOPIC)
