"""`fsmerge finetune`, data: labels, duplicates, unreadable and missing images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from fsmerge_cli.common.errors import (
    DataError,
)
from fsmerge_cli.runs.finetune import finetune
from fsmerge_cli.runs.finetune_request import request
from tests.support.finetuning import (
    CPU,
    MLP,
    small_finetune,
    write_class_folders,
)

pytestmark = pytest.mark.full


def test_data_per_task_sets_images_and_labels() -> None:
    digits = {"name": "per_task", "tasks": {"low": {"name": "digits", "images_per_task": 50}}}
    assert small_finetune(data=digits, training={"head_steps": 1, "steps": 0}).cost["images"] == 50
    glyphs = {"name": "per_task", "tasks": {"capitals": {"name": "glyphs"}}}
    model = {"arch": MLP, "start": "random", "task": "capitals"}
    requested = request(model, glyphs, None, CPU, 0, overwrite=False, resume=False, every="60s")
    assert len(requested.labels) == 26


def test_at_least_one_image_is_trained_on() -> None:
    data = {"images_per_task": 40, "validation": 0.99}
    assert small_finetune(data=data, training={"head_steps": 1, "steps": 1}).cost["images"] == 40


def test_labels_are_the_class_folders(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    done = finetune(
        {"arch": MLP, "start": "random", "task": "pets"},
        data={"name": "folder", "root": str(tmp_path)},
        training={"head_steps": 20, "steps": 150, "lr": 0.01},
        hardware=CPU,
    )
    assert done.source.labels == ("cat", "dog")
    assert done.scores["pets"].mean == 1.0


def test_test_images_are_left_out_of_the_training_and_unreadable_ones_are_listed(tmp_path: Path) -> None:
    for split, first, count in (("train", 0, 8), ("test", 6, 4)):  # images 6 and 7 are on both sides
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(first, first + count):
                Image.new("L", (8, 8), 120 * number + i).save(tmp_path / f"pets/{split}/{name}/{i}.png")
    model = {"arch": MLP, "start": "random", "task": "pets"}
    data = {"name": "folder", "root": str(tmp_path)}
    done = finetune(model, data=data, training={"steps": 5}, hardware=CPU)
    assert done.cost["images"] == 12
    assert done.notes == ("4 images left out, identical to a test image",)
    for _ in range(2):  # instead of one that is left out, the next one is taken
        done = finetune(model, data={**data, "images_per_task": 12}, training={"steps": 5}, hardware=CPU)
        assert done.cost["images"] == 12
        shutil.copy(tmp_path / "pets/train/cat/0.png", tmp_path / "pets/train/dog/again.png")
    done = finetune(model, data=data, training={"steps": 5}, hardware=CPU)
    assert done.cost["images"] == 12
    assert done.notes[:2] == (
        "4 images left out, identical to a test image",
        "1 image left out, identical to another training image",
    )
    assert len(done.notes) == 3
    assert done.notes[2].startswith("1 training image has more than one label, of which one is trained: ")
    assert f"{tmp_path}/pets/train/cat/0.png" in done.notes[2]
    assert f"{tmp_path}/pets/train/dog/again.png" in done.notes[2]
    (tmp_path / "pets/train/dog/again.png").unlink()
    (tmp_path / "pets/train/cat/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        finetune(model, data=data, training={"steps": 5}, hardware=CPU)
    done = finetune(model, data={**data, "bad_files": "skip"}, training={"steps": 5}, hardware=CPU)
    assert done.cost["images"] == 11
    assert done.notes[0].startswith("images that cannot be read are left out (1: ")


def test_without_test_images_nothing_is_evaluated(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    done = finetune(
        {"arch": MLP, "start": "random", "task": "pets"},
        data={"name": "folder", "root": str(tmp_path), "test_share": 0.0},
        training={"steps": 5},
        hardware=CPU,
        output=tmp_path / "out",
    )
    assert done.scores == {}
    assert done.notes == ("the data set has no labelled test images: nothing was evaluated",)
    assert "There were no labelled test images." in (tmp_path / "out/README.md").read_text()


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "pets/stray.png")
    with pytest.raises(DataError) as error:
        finetune(
            {"arch": MLP, "start": "random", "task": "pets"},
            data={"name": "folder", "root": str(tmp_path)},
            hardware=CPU,
        )
    assert str(error.value) == (
        "finetune needs labelled images, and data=folder has some without a label in the training split of task "
        "'pets'. Put every image into the folder of its class."
    )
