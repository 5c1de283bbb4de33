"""Predictions of a written model: the same for every kind of input, in Python and on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsmerge_cli import load_merged
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, DataError
from tests.support.evaluations import timm_folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_every_kind_of_image_has_the_same_prediction(digits_run: Path, photo: Path) -> None:
    model = load_merged(digits_run).to("cpu")
    image = Image.open(photo)
    array = np.asarray(image)
    expected = model.predict(photo)
    assert len(expected.top) == 5
    assert expected.probability == max(own.probability for own in expected.top)
    assert repr(expected).startswith(f"Prediction({expected.task}: {expected.label} ")
    tensor = torch.from_numpy(array.copy())[None]
    for other in (
        str(photo),
        image,
        image.convert("RGB"),
        array,
        array[..., None],
        array / 255,
        tensor,
        tensor / 255,
    ):
        assert model.predict(other).label == expected.label
        assert model.predict(other).probability == pytest.approx(expected.probability, abs=1e-5)
    several = model.predict([photo, image, tensor])
    assert [own.label for own in several] == [expected.label] * 3
    assert [own.label for own in model.predict(torch.stack([tensor, tensor]))] == [expected.label] * 2
    assert torch.equal(model.transform(image), tensor / 255)


def test_the_probabilities_are_of_one_task_or_of_all(digits_run: Path, photo: Path) -> None:
    model = load_merged(digits_run)
    every = model.predict(photo, top_k=100)
    assert {(own.task, own.label) for own in every.top} == {
        (task, label) for task, labels in model.labels.items() for label in labels
    }
    assert sum(own.probability for own in every.top) == pytest.approx(1)
    own = model.predict(photo, "high", top_k=100)
    assert {candidate.task for candidate in own.top} == {"high"}
    assert sum(candidate.probability for candidate in own.top) == pytest.approx(1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 8, 8), 3.0), "pixels from 3 to 3: floats have to lie in 0..1, without normalisation."),
        (torch.zeros(1, 8, 8, dtype=torch.int32), "pixels of type torch.int32 have no known range."),
        (torch.zeros(7, 8, 8), "an image of shape [7, 8, 8] cannot be used"),
        ({"image": 1}, "an image should be a path, a PIL image, an array or a tensor"),
        (Path("missing.png"), "the image missing.png cannot be read (No such file or directory)."),
    ],
)
def test_what_is_no_image_is_refused(digits_run: Path, image: object, message: str) -> None:
    with pytest.raises(DataError) as error:
        load_merged(digits_run).predict([image])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("nope", "device='nope': use auto, cpu, cuda, cuda:N or mps."),
        ("meta", "device='meta': use auto, cpu, cuda, cuda:N or mps."),
        (
            "cuda",
            "device=cuda: no CUDA device is visible. Pass 'cpu', or install a torch build with CUDA and check "
            "`nvidia-smi`.",
        ),
    ],
)
def test_a_device_that_is_not_there_is_named(
    device: str, message: str, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = load_merged(digits_run)
    with pytest.raises(ConfigError) as error:
        model.to(device)
    assert str(error.value) == message
    assert model.to(torch.device("cpu")).to("auto").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (torch.rand(2, 3, 8, 8), "float32 [2, 3, 8, 8]"),
        (torch.rand(1, 9, 8), "float32 [1, 9, 8]"),
        (torch.rand(7), "float32 [7]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "uint8 [2, 1, 8, 8]"),
        ("photo.png", "'photo.png'"),
        (np.zeros((2, 1, 8, 8)), "ndarray"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused(digits_run: Path, images: Any, what: str) -> None:
    model = load_merged(digits_run)
    for read in (model.features, model.probabilities, lambda own: model.logits(own, model.tasks[0])):
        with pytest.raises(DataError) as error:
            read(images)
        assert str(error.value) == (
            "images should be a tensor of floats [n, 1, 8, 8] with pixels in 0..1, as `transform` gives of each "
            f"image, got {what}. `predict` takes images of any size."
        )


def test_only_documented_formats_are_opened(digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(
        DataError, match=r"page.png cannot be read \(.*Formats: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"
    ):
        load_merged(digits_run).predict(tmp_path / "page.png")
    with pytest.raises(ConfigError, match="top_k: should be a whole number from 1 on, got 0"):
        load_merged(digits_run).predict(tmp_path / "page.png", top_k=0)


def test_the_command_predicts_files_and_folders(
    digits_run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photo.parent / "more"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        (folder / name).write_bytes(photo.read_bytes())
    file = photo.parent / "out.csv"
    command = ["predict", str(digits_run), str(photo), str(folder), "--top-k", "2", "--csv", str(file)]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    expected = load_merged(digits_run).predict(photo, top_k=2)
    assert [(Path(row["image"]).name, row["rank"]) for row in rows] == [
        (name, rank) for name in ("photo.png", "a.png", "b.png") for rank in (1, 2)
    ]
    assert [(row["task"], row["label"]) for row in rows[:2]] == [(own.task, own.label) for own in expected.top]
    with file.open() as opened:
        assert [(row["image"], row["label"]) for row in csv.DictReader(opened)] == [
            (row["image"], row["label"]) for row in rows
        ]
    assert main(command) == 2  # the file exists
    assert main([*command[:4], "--task", "hgh"]) == 2
    assert "unknown task 'hgh'. Did you mean 'high'?" in capsys.readouterr().err
    assert main([*command[:4], "--csv", str(photo)]) == 2
    assert main([*command[:3], "--task", "low", "--top-k", "1"]) == 0
    best = load_merged(digits_run).predict(photo, "low").top[0]
    assert capsys.readouterr().out == f"{photo}\n  {100 * best.probability:5.1f} %  {best.label}  low\n"


def test_files_of_a_folder_that_are_no_images_are_counted(
    digits_run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.heic", "b.HEIC", "c"):
        (photo.parent / name).write_bytes(b"x")
    (photo.parent / "broken.png").symlink_to("gone.png")
    assert main(["predict", str(digits_run), str(photo.parent)]) == 0
    note = f"files in {photo.parent} that are no images were not used: 2 x .heic, 1 x broken link, 1 x no suffix"
    assert f"note: {note}" in capsys.readouterr().err.splitlines()


@pytest.mark.full
def test_notes_on_the_model_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timm_folder(tmp_path / "model", pretrained_cfg={"input_size": [3, 8, 8]})
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    notes = load_merged(tmp_path / "model").notes
    command = ["predict", str(tmp_path / "model"), str(tmp_path / "photo.png"), "--json"]
    assert main(command) == 0
    output = capsys.readouterr()
    assert notes
    assert [line for line in output.err.splitlines() if line.startswith("note: ")] == [
        f"note: {note}" for note in notes
    ]
    assert json.loads(output.out)
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_every_unreadable_image_is_listed(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("text")
    assert main(["predict", str(digits_run), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "2 images cannot be read:" in error
    assert f"{tmp_path}/b.png" in error


@pytest.mark.full
@pytest.mark.parametrize("command", ["predict", "export"])
def test_the_keys_that_a_note_advises_are_taken(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    timm_folder(tmp_path / "own", pretrained_cfg={"input_size": [3, 8, 8]})
    Image.new("RGB", (8, 8), (200, 50, 50)).save(tmp_path / "a.png")
    more = {"predict": ["a.png", "--json"], "export": ["--format=torch"]}[command]
    arguments = [command, "own", *more]
    assert main(arguments) == 0
    plain = capsys.readouterr()
    assert "if it was trained with other values, pass model.mean=[...] and model.std=[...]" in plain.err
    keys = ["model.mean=[0.5,0.4,0.3]", "model.std=[0.2,0.3,0.4]", "model.labels=[a,b,c,d]", "model.task=letters"]
    file = [] if command == "predict" else ["--output", "given.pt2"]
    assert main([*arguments, *keys, *file]) == 0
    given = capsys.readouterr()
    assert "if it was trained with other values" not in given.err
    reading = {"task": "letters", "labels": ("a", "b", "c", "d"), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    model = load_merged("own", reading)
    if command == "predict":
        assert json.loads(given.out)[0]["label"] == model.predict("a.png").label
        assert json.loads(given.out)[0]["probability"] != json.loads(plain.out)[0]["probability"]
    else:
        program, pixels = torch.export.load(tmp_path / "given.pt2").module(), torch.rand(3, 3, 8, 8)
        torch.testing.assert_close(program(pixels), model.logits(pixels, "letters"))
    assert main([*arguments, "model.maen=[0.5]"]) == 2
    assert "unknown key in model 'maen'. Did you mean 'mean'?" in capsys.readouterr().err
