"""No class and no image changes silently: links, hidden folders, other formats, Unicode names in folders."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.folder import Folder
from tests.support.image_files import put

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
    for name in (".thumbnails", "__MACOSX", "owl/.cache", "owl/__MACOSX"):
        put(root / f"birds/train/{name}/b.png", 9)
    assert Folder(root=str(root)).classes(TASK) == ("owl", "wren")
    assert list(build(root).classes or ()) == [0, 1]


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
        f"task 'birds': files in {root / 'birds/train'} without the suffix of an image were not used: 1 x .avif, "
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
        ".heic. Convert them to one of .bmp, .gif, .jfif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp, or "
        "remove the folder."
    )
