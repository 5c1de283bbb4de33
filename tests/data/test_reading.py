from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import silent
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.draw import draw
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.data.reading import read
from fsmerge_cli.evaluation.forward import TestSet

# torch suggests no more workers than there are cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CPU = torch.device("cpu")
WORKERS = [0, pytest.param(2, marks=pytest.mark.full)]


def folder(root: Path, images: int = 40) -> Folder:
    for split in ("train", "test"):
        (root / "a" / split / "x").mkdir(parents=True)
        for i in range(images):
            pixels = np.random.default_rng(i).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "a" / split / "x" / f"{i:02}.png")
    return Folder(root=str(root), images_per_task="all", augment="shift", views=2)


def images(config: Folder, split: str) -> ImageSet:
    found = config.build(split, Task("a", ("x",)), ToPixels((1, 8, 8)))  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.full
def test_workers_sample_the_same_images_and_views(tmp_path: Path) -> None:
    config = folder(tmp_path)
    one, three = (draw(config, [images(config, "train")], 0, workers)[0] for workers in (0, 3))
    assert len(one) == 40 + 36 * 2
    for name in ("images", "task", "train", "validation"):
        assert torch.equal(getattr(one, name), getattr(three, name))


@pytest.mark.parametrize("workers", WORKERS)
def test_an_unreadable_image_gives_the_same_message_with_workers(tmp_path: Path, workers: int) -> None:
    config = folder(tmp_path, images=4)
    for split in ("train", "test"):
        (tmp_path / "a" / split / "x/02.png").write_bytes(b"no image")
    bad = tmp_path / "a/train/x/02.png"
    with pytest.raises(DataError) as error:
        draw(config, [images(config, "train")], 0, workers)
    expected = f"the image {bad} cannot be read (cannot identify image file '{bad}'). Repair or remove it."
    assert str(error.value) == expected
    tests = TestSet(("a",), (images(config, "test"),), Hardware(workers=workers, eval_batch=2), CPU, silent)
    with pytest.raises(DataError) as error:
        tests.predict(lambda pixels: ([pixels.flatten(1)], []), "x")
    assert str(error.value) == expected.replace("/train/", "/test/")


@pytest.mark.parametrize("workers", WORKERS)
def test_reading_neither_uses_nor_changes_the_global_generator(workers: int) -> None:
    before = torch.get_rng_state()
    found = list(read(torch.arange(10), [3, 1, 2], 2, workers))
    assert [part.tolist() for part in found] == [[3, 1], [2]]
    assert torch.equal(torch.get_rng_state(), before)
    assert list(read(torch.arange(10), [], 2, workers)) == []


class EndsTheWorker:
    def __getitem__(self, index: int) -> torch.Tensor:
        if get_worker_info() is not None:
            os._exit(1)
        return torch.zeros(1)


@pytest.mark.full
def test_a_worker_that_dies_is_reported() -> None:
    with pytest.raises(
        DataError,
        match=r"^a process that reads images died \(DataLoader worker .*\)\. It may have had too little memory, "
        r"or shared memory \(/dev/shm\)\. Pass hardware\.workers=0, or fewer workers than now\.$",
    ):
        list(read(EndsTheWorker(), [0, 1], 1, 1))


def test_labels_of_a_folder_are_known_without_reading(tmp_path: Path) -> None:
    config = folder(tmp_path, images=3)
    (tmp_path / "a/test/x/02.png").write_bytes(b"no image")
    tests = TestSet(("a",), (images(config, "test"),), Hardware(eval_batch=2), CPU, silent)
    task, label = tests.truth()
    assert (task.tolist(), label.tolist()) == ([0, 0, 0], [0, 0, 0])
