"""Layouts of image folders, and errors about them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import Split, ToPixels
from fsmerge_cli.data.images.files import SUFFIXES
from fsmerge_cli.data.images.folder import Folder
from tests.support.image_files import put

PIXELS = ToPixels((1, 2, 2))
TASK = Task("birds", ("wren", "owl"))


def build(root: Path, split: str = "train", task: Task = TASK, **options: float | str) -> ImageSet | None:
    return Folder(root=str(root), **options).build(split, task, PIXELS)  # type: ignore[arg-type]


def values(images: ImageSet | None) -> list[tuple[int, int]]:
    """(value of the image, class index) of every image, in order."""
    assert images is not None
    return [(round(images[i][0].max().item() * 255), images[i][1]) for i in range(len(images))]


def refused(root: Path | None, split: str = "train", task: Task = TASK) -> str:
    with pytest.raises(DataError) as error:
        Folder(root=None if root is None else str(root)).build(split, task, PIXELS)  # type: ignore[arg-type]
    return str(error.value)


# Layouts


def test_train_and_test_folders_of_classes(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/owl/a.png", 1)
    put(tmp_path / "birds/train/owl/deep/b.png", 2)
    put(tmp_path / "birds/train/wren/a.png", 3)
    put(tmp_path / "birds/test/wren/a.png", 4)
    train, test = build(tmp_path), build(tmp_path, "test")
    assert values(train) == [(1, 1), (2, 1), (3, 0)]
    assert values(test) == [(4, 0)]
    assert train is not None
    assert train.labelled


def test_a_flat_train_folder_with_labelled_test_images(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/b.png", 2)
    put(tmp_path / "birds/train/a.png", 1)
    put(tmp_path / "birds/test/owl/c.png", 3)
    train = build(tmp_path)
    assert values(train) == [(1, -1), (2, -1)]
    assert train is not None
    assert not train.labelled
    assert values(build(tmp_path, "test")) == [(3, 1)]


def test_unlabelled_test_images_are_used_if_there_are_no_labelled_ones(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/owl/a.png", 1)
    put(tmp_path / "birds/test/c.png", 3)
    assert values(build(tmp_path, "test")) == [(3, -1)]
    put(tmp_path / "birds/test/owl/d.png", 4)
    assert values(build(tmp_path, "test")) == [(4, 1)]


def test_class_folders_are_split_by_file_name(tmp_path: Path) -> None:
    for n in range(100):
        put(tmp_path / "birds" / ("owl" if n % 2 else "wren") / f"{n}.png", n + 1)
    train, test = values(build(tmp_path)), values(build(tmp_path, "test"))
    assert sorted(train + test) == [(n + 1, n % 2) for n in range(100)]
    assert 10 <= len(test) <= 30
    put(tmp_path / "birds/owl/late.png", 200)
    put(tmp_path / "birds/wren/later.png", 201)
    after = values(build(tmp_path)), values(build(tmp_path, "test"))
    assert set(train) <= set(after[0])
    assert set(test) <= set(after[1])
    (tmp_path / "birds").rename(tmp_path / "moved")
    (tmp_path / "far").mkdir()
    (tmp_path / "moved").rename(tmp_path / "far/birds")
    assert (values(build(tmp_path / "far")), values(build(tmp_path / "far", "test"))) == after


def test_the_share_of_test_images_is_an_option(tmp_path: Path) -> None:
    for n in range(100):
        put(tmp_path / f"birds/owl/{n}.png", n + 1)
    assert build(tmp_path, "test", test_share=0.0) is None
    assert len(values(build(tmp_path, test_share=0.0))) == 100
    assert 35 <= len(values(build(tmp_path, "test", test_share=0.5))) <= 65


def test_flat_images_are_all_training_images(tmp_path: Path) -> None:
    for n in range(5):
        put(tmp_path / f"birds/{n}.png", n + 1)
    train = build(tmp_path)
    assert values(train) == [(n + 1, -1) for n in range(5)]
    assert train is not None
    assert not train.labelled
    assert build(tmp_path, "test") is None


def test_class_folders_of_a_task_without_labels_are_unlabelled_images(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/anything/a.png", 1)
    put(tmp_path / "birds/test/anything/b.png", 2)
    assert values(build(tmp_path, task=Task("birds", None))) == [(1, -1)]
    assert values(build(tmp_path, "test", task=Task("birds", None))) == [(2, -1)]


def test_other_files_and_empty_folders_are_ignored(tmp_path: Path) -> None:
    put(tmp_path / "birds/owl/a.PNG", 1)
    (tmp_path / "birds/owl/notes.txt").write_text("seen at dusk")
    (tmp_path / "birds/owl/folder.png").mkdir()
    (tmp_path / "birds/.cache").mkdir()
    (tmp_path / "birds/notes").mkdir()
    (tmp_path / "birds/notes/readme.md").write_text("")
    assert sorted(values(build(tmp_path, test_share=0.0))) == [(1, 1)]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_listed_file_type_can_be_read(suffix: str, tmp_path: Path) -> None:
    put(tmp_path / f"birds/a{suffix}", 200)
    ((value, _),) = values(build(tmp_path))
    assert abs(value - 200) <= 2


def test_a_tilde_stands_for_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "images/birds/a.png", 9)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert values(build(Path("~/images"))) == [(9, -1)]


def test_an_image_set_can_be_pickled(tmp_path: Path) -> None:
    put(tmp_path / "birds/train/owl/a.png", 1)
    assert values(pickle.loads(pickle.dumps(build(tmp_path)))) == [(1, 1)]


# Errors


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    assert refused(None) == "data=folder needs data.root=PATH, a folder with one folder per task in it."
    gone = tmp_path / "gone"
    assert refused(gone) == f"data.root={gone}: no such folder."
    gone.write_text("a file")
    assert refused(gone) == f"data.root={gone}: no such folder."


def test_a_missing_folder_of_a_task_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"data=folder: no folder for task 'birds' in {tmp_path}. "
        "Found: no folders. Name one folder after each task, or put "
        "the images of all tasks directly into the root."
    )
    (tmp_path / "fish").mkdir()
    (tmp_path / "bird").mkdir()
    (tmp_path / "birds").write_text("a file")
    assert refused(tmp_path) == (
        f"data=folder: no folder for task 'birds' in {tmp_path}. "
        "Found: bird, fish. Name one folder after each task, or put "
        "the images of all tasks directly into the root."
    )


@pytest.mark.parametrize(
    ("made", "reported"), [("birds", "birds"), ("birds/train", "birds/train"), ("birds/test", "birds/train")]
)
def test_a_task_without_images_is_refused(made: str, reported: str, tmp_path: Path) -> None:
    (tmp_path / made).mkdir(parents=True)
    (tmp_path / made / "notes.txt").write_text("")
    assert refused(tmp_path) == (
        f"data=folder: no images for task 'birds' in {tmp_path / reported}. "
        f"Put images there ({', '.join(sorted(SUFFIXES))}), flat or in class folders."
    )
    assert build(tmp_path, "test") is None


@pytest.mark.parametrize("place", ["birds", "birds/train", "birds/test"])
def test_class_folders_must_be_labels_of_the_task(place: str, tmp_path: Path) -> None:
    put(tmp_path / "birds/train/owl/a.png")
    for unknown in ("emu", "kiwi"):
        put(tmp_path / place / unknown / "a.png")
    if place == "birds":
        (tmp_path / "birds/train/owl").rename(tmp_path / "birds/owl")
        (tmp_path / "birds/train").rmdir()
    assert refused(tmp_path, "test" if place.endswith("test") else "train") == (
        f"data=folder: the class folders emu, kiwi in {tmp_path / place} are not labels of task "
        "'birds' (wren, owl). Rename the folders, pass models.sources.N.labels=[...] (labels=data: the folders' "
        "names, sorted), or data.class_folders=none (test: only folders in test/ are classes) to use images "
        "without labels."
    )


def test_images_in_folders_that_are_not_classes_have_no_labels(tmp_path: Path) -> None:
    for name in ("train/2024/05/a.png", "train/2024/b.png", "train/c.png", "test/owl/d.png"):
        put(tmp_path / "birds" / name)
    task = Task("birds", ("wren", "owl"))

    def labels(class_folders: str, split: Split) -> list[int]:
        found = build(tmp_path, split, task, class_folders=class_folders)
        assert found is not None
        return sorted(found.classes or ())

    assert (labels("test", "train"), labels("test", "test")) == ([-1, -1, -1], [1])
    assert (labels("none", "train"), labels("none", "test")) == ([-1, -1, -1], [-1])
    assert Folder(root=str(tmp_path), class_folders="test").classes(task) == ("owl",)
    assert Folder(root=str(tmp_path), class_folders="none").classes(task) is None
    for name in ("2023/a.png", "2024/05/b.png"):
        put(tmp_path / "plain/birds" / name)
    plain = Folder(root=str(tmp_path / "plain"), class_folders="none")
    unlabelled = plain.build("train", task, PIXELS)
    assert unlabelled is not None
    assert (len(unlabelled), unlabelled.labelled, plain.build("test", task, PIXELS)) == (2, False, None)


@pytest.mark.parametrize("kept", [0, 20, 300])
def test_an_unreadable_image_is_reported(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "birds/a.png"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    images = build(tmp_path)
    assert images is not None
    with pytest.raises((OSError, SyntaxError)) as reason, Image.open(path) as image:
        image.load()
    with pytest.raises(DataError) as error:
        images[0]
    assert str(error.value) == f"the image {path} cannot be read ({reason.value}). Repair or remove it."
