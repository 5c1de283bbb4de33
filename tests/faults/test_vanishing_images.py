"""No class and no image changes silently: links, hidden folders, other formats, Unicode names in folders."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.data.images.tensors import Tensors
from fsmerge_cli.data.per_task import PerTask
from fsmerge_cli.data.sampling import prepare_images
from tests.support.image_files import put
from tests.support.image_sets import Opened, hf, torchvision

PIXELS = ToPixels((1, 2, 2))
TASK = Task("birds", ("owl", "wren"))


def build(root: Path, task: Task = TASK) -> ImageSet:
    found = Folder(root=str(root)).build("train", task, PIXELS)
    assert found is not None
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in TASK.labels or ():
        put(tmp_path / f"birds/train/{name}/a.png", 1)
    return tmp_path


def test_hidden_folders_and_those_of_macos_are_no_classes(root: Path) -> None:
    for name in (".thumbnails", "__MACOSX", "@eaDir", "owl/.cache", "owl/__MACOSX", "owl/@eaDir/a.png"):
        put(root / f"birds/train/{name}/b.png", 9)
    assert Folder(root=str(root)).classes(TASK) == ("owl", "wren")
    assert list(build(root).classes or ()) == [0, 1]


def test_images_beside_train_and_test_are_noted(root: Path) -> None:
    for name in ("val/owl/a.png", "val/wren/b.png", "c.png", "test/owl/d.png", "__MACOSX/e.png"):
        put(root / "birds" / name, 3)
    note = f"of {root / 'birds'} only train and test are read; images beside them are not used: c.png (1), val (2)"
    assert build(root).notes == (f"task 'birds': {note}",)


def test_two_classes_that_are_one_folder_are_refused(root: Path) -> None:
    train = root / "birds/train"
    (train / "raven").symlink_to(train / "owl")
    with pytest.raises(DataError) as error:
        build(root, Task("birds", ("owl", "raven", "wren")))
    assert str(error.value) == (
        f"data=folder: the class folders 'owl' and 'raven' in {train} are one folder, by a link, so that each "
        "image would have two classes. Remove one of them."
    )


def test_links_are_followed_once(root: Path, tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / f"elsewhere/{i}.png", 5)
    train = root / "birds/train"
    (train / "owl/more").symlink_to(tmp_path / "elsewhere")
    (train / "owl/back").symlink_to(train / "owl")  # a circle
    (train / "owl/up").symlink_to(train)  # to the other classes
    assert list(build(root).classes or ()) == [0, 0, 0, 0, 1]


def test_a_class_may_be_a_link(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/0.png", 5)
    (root / "birds/train/tern").symlink_to(tmp_path / "elsewhere")
    assert Folder(root=str(root)).classes(TASK) == ("owl", "tern", "wren")


def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        put(tmp_path / form / "birds" / "train" / unicodedata.normalize(form, "m\u00f6we") / "a.png", 1)
        for given in ("NFC", "NFD"):
            task = Task("birds", (unicodedata.normalize(given, "m\u00f6we"),))
            assert list(build(tmp_path / form, task).classes or ()) == [0]


def test_a_jfif_file_is_an_image(root: Path) -> None:
    put(root / "birds/train/owl/b.jpg", 1)
    (root / "birds/train/owl/b.jpg").rename(root / "birds/train/owl/b.jfif")
    assert len(build(root)) == 3


def test_other_formats_are_counted_in_a_note(root: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.avif", "notes.txt", "raw"):
        (root / "birds/train/owl" / name).write_bytes(b"x")
    assert build(root).notes == (
        f"task 'birds': files in {root / 'birds/train'} that are no images were not used: 1 x .avif, "
        "2 x .heic, 1 x no suffix",
    )
    (root / "birds/train/owl/notes.txt").unlink()
    assert len(build(root)) == 2


def test_a_class_that_would_end_empty_is_refused(root: Path) -> None:
    (root / "birds/train/tern").mkdir()
    assert Folder(root=str(root)).classes(TASK) == ("owl", "wren")  # an empty folder is no class
    (root / "birds/train/tern/a.heic").write_bytes(b"x")
    with pytest.raises(DataError) as error:
        build(root)
    assert str(error.value) == (
        f"data=folder: the class folder {root / 'birds/train/tern'} has no image that can be read, only 1 x "
        ".heic. Convert them to one of .bmp, .gif, .jfif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, "
        ".webp (or restore them), or remove the folder."
    )


def test_two_folders_of_one_name_in_different_unicode_are_refused(tmp_path: Path) -> None:
    train = tmp_path / "birds/train"
    for form in ("NFC", "NFD"):
        put(train / unicodedata.normalize(form, "m\u00f6we") / f"{form}.png", 1)
    with pytest.raises(DataError) as error:
        Folder(root=str(tmp_path)).classes(TASK)
    assert str(error.value).startswith(f"data=folder: two class folders in {train} are called 'm")
    assert str(error.value).endswith("', written with different Unicode characters. Merge them into one.")


def test_test_images_without_a_label_beside_class_folders_are_counted(root: Path) -> None:
    for name in ("owl/a", "wren/a", "b", "c"):
        put(root / f"birds/test/{name}.png", 1)
    found = Folder(root=str(root)).build("test", TASK, PIXELS)
    assert found is not None
    assert found.notes == ("task 'birds': 2 test images beside the class folders have no label: not used",)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Class folders for every data set; the task is `t`."""
    for label in TASK.labels or ():
        put(tmp_path / f"t/train/{label}/a.png", 200)
        put(tmp_path / f"t/train/{label}/b.png", 100)
    return tmp_path


def library(kind: Opened, root: Path) -> ImageSet:
    found = kind(root).build("train", Task("t", TASK.labels), PIXELS)
    assert found is not None
    return found


BOTH = pytest.mark.parametrize(
    ("kind", "name"), [(torchvision, "torchvision's ImageFolder"), (hf, "data=hf")], ids=["torchvision", "hf"]
)


@BOTH
def test_other_libraries_name_the_files_that_they_pass_over(kind: Opened, name: str, shared: Path) -> None:
    assert library(kind, shared).notes == ()
    for file in ("owl/a.heic", "wren/b.AVIF", "wren/raw", "owl/notes.txt"):
        (shared / "t/train" / file).write_bytes(b"x")
    found = library(kind, shared)
    assert len(found) == 4
    assert found.notes == (
        f"task 't': files in {shared / 't/train'} that {name} does not read: 1 x .avif, 1 x .heic, 1 x no suffix",
    )


@BOTH
def test_other_libraries_do_not_lose_a_class(kind: Opened, name: str, shared: Path) -> None:
    (shared / "t/train/owl/more").mkdir()
    (shared / "t/train/owl/more/a.heic").write_bytes(b"x")
    with pytest.raises(DataError) as error:
        library(kind, shared)
    assert str(error.value) == (
        f"{name} reads no image of 1 folder: {shared / 't/train/owl/more'}. Convert the files there, remove it, "
        "or pass data=folder, which reads more formats and follows links."
    )


def test_hidden_folders_are_no_classes_of_torchvision(shared: Path) -> None:
    for hidden in (".thumbs", "__MACOSX"):
        put(shared / f"t/train/{hidden}/a.png")
    with pytest.raises(DataError) as error:
        torchvision(shared).build("train", Task("t", (".thumbs", "__MACOSX", "owl", "wren")), PIXELS)
    assert str(error.value) == (
        "torchvision's ImageFolder takes hidden files or folders for images or classes: .thumbs, __MACOSX. Remove "
        "them, or pass data=folder."
    )
    assert len(library(hf, shared)) == 4  # which leaves them out


def test_a_circle_of_links_does_not_multiply_images(shared: Path) -> None:
    (shared / "t/train/owl/back").symlink_to(shared / "t/train/owl")
    with pytest.raises(
        DataError, match=r"^torchvision's ImageFolder reads \d+ files of .* more than once, through "
    ):
        library(torchvision, shared)
    assert len(library(hf, shared)) == 4


def test_a_link_that_hf_does_not_follow_is_refused(shared: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/0.png", 5)
    (shared / "t/train/owl/link").symlink_to(tmp_path / "elsewhere")
    assert len(library(torchvision, shared)) == 5
    with pytest.raises(DataError, match=r"^data=hf reads no image of 1 folder: .*/owl/link\. "):
        library(hf, shared)


def test_images_of_other_labels_are_counted(tmp_path: Path) -> None:
    labels = np.array(["owl", "wren", "tern", "owl", "tern "])
    np.savez(tmp_path / "birds.npz", images=np.full((5, 2, 2), 200, np.uint8), labels=labels)
    data = Tensors(train=str(tmp_path / "{task}.npz"), test=str(tmp_path / "{task}.npz"))
    for own in (data, PerTask(tasks={"birds": {"name": "tensors", "train": str(tmp_path / "birds.npz")}})):
        found = own.build("train", TASK, PIXELS)
        assert found is not None
        assert found.notes == ("task 'birds': 2 of 5 images have none of its labels: not used",)


def test_names_in_arrays_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        labels = np.array([unicodedata.normalize(form, "m\u00f6we"), "owl"])
        np.savez(tmp_path / "a.npz", images=np.full((2, 2, 2), 200, np.uint8), labels=labels)
        for given in ("NFC", "NFD"):
            task = Task("birds", (unicodedata.normalize(given, "m\u00f6we"), "owl"))
            found = Tensors(train=str(tmp_path / "a.npz")).build("train", task, PIXELS)
            assert found is not None
            assert list(found.classes or ()) == [0, 1]


def notes_of(folder: Path, images: np.ndarray[Any, Any], labels: list[int]) -> list[str]:
    np.savez(folder / "a.npz", images=images, labels=np.array(labels))
    data = Tensors(train=str(folder / "a.npz"), test=str(folder / "a.npz"), images_per_task=2)
    return prepare_images(data, [Task("t", ("0", "1", "2"))], lambda: PIXELS, seed=0)[2]


def test_a_label_without_images_is_named(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 2), dtype=np.uint8)
    found = notes_of(tmp_path, images, [0, 1, 1, 0])
    assert [note for note in found if "there are no" in note] == [
        "task 't': there are no images of 2",
        "task 't': there are no test images of 2",
    ]
    assert not any("there are no" in note for note in notes_of(tmp_path, images, [0, 1, 2, 0]))


@pytest.mark.parametrize(("bits", "kind"), [(4, np.uint8), (1, np.uint8), (12, np.uint16), (8, np.uint16)])
def test_images_of_fewer_bits_than_their_type_are_noted(bits: int, kind: type, tmp_path: Path) -> None:
    images = np.full((4, 2, 2), 2**bits - 1, kind)
    share = (2**bits - 1) / (2 ** (8 * np.dtype(kind).itemsize) - 1)
    assert [note for note in notes_of(tmp_path, images, [0, 1, 2, 0]) if "no pixel" in note] == [
        f"task 't': no pixel of its test images is above {round(share * 255) / 255:.3g} of the range 0..1: if "
        "they are stored with fewer bits than their files have, scale them to the whole range"
    ]


def test_broken_links_and_what_is_no_file_are_counted(root: Path) -> None:
    (root / "birds/train/owl/b.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "birds/train/owl/c.png")
    assert build(root).notes == (
        f"task 'birds': files in {root / 'birds/train'} that are no images were not used: 1 x broken link, 1 x no "
        "regular file",
    )
    (root / "birds/train/tern").mkdir()
    (root / "birds/train/tern/a.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match="tern has no image that can be read, only 1 x broken link"):
        build(root)


def test_a_repeated_label_is_refused(root: Path) -> None:
    with pytest.raises(DataError) as error:
        build(root, Task("birds", ("owl", "wren", "owl")))
    assert str(error.value) == (
        "data=folder: task 'birds' has the label owl more than once, so that the folder of that name has no "
        "row of its own. Pass models.sources.N.labels=[...] without repetition."
    )
