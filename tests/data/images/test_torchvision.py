from __future__ import annotations

import csv
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.torchvision import TorchVision

PIXELS = ToPixels((1, 4, 4))
DIGITS = Task("digits", tuple("0123456789"))


def values(images: ImageSet | None) -> list[tuple[int, int]]:
    """(value of the image, class index) of every image, in order."""
    assert images is not None
    found = [(round(images[i][0].max().item() * 255), images[i][1]) for i in range(len(images))]
    assert [label for _, label in found] == list(images.classes or ())
    return found


def mnist(root: Path) -> Path:
    """Files in MNIST's format: training image i has value i + 1 and class i mod 10; test values start at 100."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for kind, count, first in (("train", 20, 1), ("t10k", 10, 100)):
        pixels = np.arange(first, first + count, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
        labels = np.arange(count, dtype=np.uint8) % 10
        heads = struct.pack(">IIII", 2051, count, 28, 28), struct.pack(">II", 2049, count)
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(heads[0] + pixels.tobytes())
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(heads[1] + labels.tobytes())
    return root


def gtsrb(root: Path) -> Path:
    """Files in GTSRB's layout: a folder of .ppm files per training class, one folder and a table for the test."""
    training, test = root / "gtsrb/GTSRB/Training", root / "gtsrb/GTSRB/Final_Test/Images"
    test.mkdir(parents=True)
    for number in range(3):
        folder = training / f"{number:05}"
        folder.mkdir(parents=True)
        for n in range(2):
            Image.new("RGB", (15, 17), (10 * number + n + 1,) * 3).save(folder / f"00000_{n:05}.ppm")
    with (root / "gtsrb/GT-final_test.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Filename", "Width", "Height", "ClassId"])
        for n in range(3):
            Image.new("RGB", (16, 16), (100 + n,) * 3).save(test / f"{n:05}.ppm")
            rows.writerow([f"{n:05}.ppm", 16, 16, 2 - n])
    return root


def data(name: str, root: Path | None, **options: object) -> TorchVision:
    return TorchVision(dataset=name, root=None if root is None else str(root), **options)  # type: ignore[arg-type]


def refused(chosen: TorchVision, task: Task = DIGITS) -> str:
    with pytest.raises((DataError, ConfigError)) as error:
        chosen.build("train", task, PIXELS)
    return str(error.value)


def test_mnist_files(tmp_path: Path) -> None:
    chosen = data("MNIST", mnist(tmp_path))
    train, test = (chosen.build(split, DIGITS, PIXELS) for split in ("train", "test"))
    assert values(train) == [(i + 1, i % 10) for i in range(20)]
    assert values(test) == [(100 + i, i) for i in range(10)]
    assert train is not None
    assert train.notes == ("task 'digits': its labels are taken as class indices: 0 is '0 - zero'",)
    assert train.title(3) == "MNIST train 3"
    assert values(pickle.loads(pickle.dumps(train)))[:2] == [(1, 0), (2, 1)]
    assert chosen.classes(DIGITS)[:2] == ("0 - zero", "1 - one")  # type: ignore[index]


def test_labels_select_the_images_of_a_task_by_name_or_index(tmp_path: Path) -> None:
    chosen = data("MNIST", mnist(tmp_path))
    assert values(chosen.build("test", Task("high", ("7", "5")), PIXELS)) == [(105, 1), (107, 0)]
    named = chosen.build("test", Task("high", ("7 - SEVEN", "5_-_five")), PIXELS)
    assert values(named) == [(105, 1), (107, 0)]
    assert named is not None
    assert named.notes == (
        "task 'high': 2 of its labels are matched to class names that are spelled differently: '7 - SEVEN' is "
        "'7 - seven', '5_-_five' is '5 - five'",
        "task 'high': 8 of 10 images have none of its labels: not used",
    )


def test_a_task_without_labels_has_every_image_unlabelled(tmp_path: Path) -> None:
    found = data("MNIST", mnist(tmp_path)).build("train", Task("any", None), PIXELS)
    assert values(found) == [(i + 1, -1) for i in range(20)]
    assert found is not None
    assert not found.labelled


def test_gtsrb_files_without_class_names(tmp_path: Path) -> None:
    chosen = data("GTSRB", gtsrb(tmp_path))
    signs = Task("signs", ("20 km/h", "30 km/h", "50 km/h"))
    train, test = (chosen.build(split, signs, PIXELS) for split in ("train", "test"))
    assert values(train) == [(1, 0), (2, 0), (11, 1), (12, 1), (21, 2), (22, 2)]
    assert values(test) == [(100, 2), (101, 1), (102, 0)]
    assert train is not None
    assert train.notes == (
        "task 'signs': its labels are matched to the classes by their order: '20 km/h' is class 0",
    )
    assert chosen.classes(signs) is None


def test_image_folder_with_two_folders_or_a_fixed_split(tmp_path: Path) -> None:
    for split, first in (("train", 1), ("test", 101)):
        for n in range(40):
            path = tmp_path / "birds" / split / ("owl" if n % 2 else "wren") / f"{n:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), first + n).save(path)
    task = Task("birds", ("owl", "wren"))
    two = {f"{split}_args": {"root": str(tmp_path / "{task}" / split)} for split in ("train", "test")}
    chosen = data("ImageFolder", None, **two)
    train, test = (values(chosen.build(split, task, PIXELS)) for split in ("train", "test"))
    assert train == [(n + 1, 1 - n % 2) for n in (*range(1, 40, 2), *range(0, 40, 2))]
    assert [value for value, _ in test] == [value + 100 for value, _ in train]
    chosen = data("ImageFolder", tmp_path / "{task}/train")
    kept, held = (values(chosen.build(split, task, PIXELS)) for split in ("train", "test"))
    assert sorted(kept + held) == sorted(train)
    assert 4 <= len(held) <= 12
    assert data("ImageFolder", tmp_path / "birds/train", test_share=0.0).build("test", task, PIXELS) is None
    assert chosen.build("test", Task("birds", None), PIXELS) is None


def test_arguments_reach_the_class() -> None:
    task = Task("x", ("0", "1", "2"))
    chosen = data("FakeData", None, args={"size": 12, "image_size": [3, 5, 5], "num_classes": 3})
    train, test = (chosen.build(split, task, PIXELS) for split in ("train", "test"))
    assert train is not None
    assert test is not None
    assert len(train) + len(test) == 12
    assert {label for _, label in values(train)} <= {0, 1, 2}


def test_missing_files_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda self: pytest.fail("a download"))
    assert refused(data("MNIST", tmp_path)) == (
        f"data=torchvision: MNIST(root='{tmp_path}', train=True, download=False) cannot be opened (Dataset not "
        "found. You can use download=True to download it). Pass another data.root=PATH or data.args={...}, or "
        "data.download=true."
    )


def test_numeric_class_names_are_not_indices(tmp_path: Path) -> None:
    for name in ("5", "6"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), int(name)).save(tmp_path / name / "0.png")
    chosen = data("ImageFolder", tmp_path, test_share=0.0)
    assert values(chosen.build("train", Task("x", ("6", "5")), PIXELS)) == [(5, 1), (6, 0)]
    assert refused(chosen, Task("x", ("0", "1"))).startswith(
        "data=torchvision: ImageFolder: task 'x' has 2 labels, of which 0, 1 do not match any of the 2 classes "
        "(5, 6)."
    )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (TorchVision(), "data=torchvision needs data.dataset=NAME, a class of torchvision.datasets (MNIST)."),
        (
            data("MNIST", None),
            "data=torchvision needs data.root=PATH, the folder of MNIST.",
        ),
        (
            data("MNIST", Path("x"), args={"trian": True}),
            "data.args: unknown argument of MNIST 'trian'. Did you mean 'train'? Available: root, train.",
        ),
        (
            data("ImageFolder", Path("x"), download=True),
            "data.download=true: torchvision cannot download ImageFolder. Remove this key.",
        ),
        (
            data("ImageFolder", Path("nowhere")),
            "data=torchvision: ImageFolder(root='nowhere') cannot be opened (No such file or directory). Pass "
            "another data.root=PATH or data.args={...}.",
        ),
    ],
)
def test_data_sets_that_cannot_be_opened_are_reported(chosen: TorchVision, message: str) -> None:
    assert refused(chosen) == message


def test_an_unknown_class_and_labels_that_do_not_match_are_refused(tmp_path: Path) -> None:
    message = refused(data("MNITS", tmp_path))
    assert message.startswith(
        "data.dataset: unknown torchvision data set 'MNITS'. Did you mean 'MNIST'? Available: "
    )
    for name in ("LSUN", "LSUNClass"):  # which unpickle a file in the working directory
        message = refused(TorchVision(dataset=name, root=str(tmp_path)))
        assert message.startswith(f"data.dataset: unknown torchvision data set '{name}'.")
    chosen = data("MNIST", mnist(tmp_path))
    assert refused(chosen, Task("pets", ("cat", "dog"))) == (
        "data=torchvision: MNIST: task 'pets' has 2 labels, of which cat, dog do not match any of the 10 classes "
        "(0 - zero, 1 - one, 2 - two, 3 - three, 4 - four, ...). Pass models.sources.N.labels=[...] or "
        "another data=..."
    )


def test_malformed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train/owl/0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no image")
    chosen = data("ImageFolder", tmp_path / "train", test_share=0.0)
    images = chosen.build("train", Task("birds", ("owl",)), PIXELS)
    assert images is not None
    with pytest.raises(DataError) as error:
        images[0]
    head, tail = (
        "data=torchvision: ImageFolder: image 0 cannot be read (cannot identify ",
        "Repair or remove it.",
    )
    assert str(error.value).startswith(head)
    assert str(error.value).endswith(tail)
