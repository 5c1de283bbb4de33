"""One folder of images for all tasks: every source sees every image, and nobody's images are called auxiliary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fsmerge_cli import evaluate, merge
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.draw import NO_TASK
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.data.sampling import count_images, prepare_images
from fsmerge_cli.reporting import summary
from tests.support.image_files import put

PIXELS = ToPixels((1, 2, 2))
TASKS = [Task("pets", ("cat", "dog")), Task("cars", None)]
HOW = "no folder is named after a task (pets, cars), so {} used for every one: each source is run on all of them, "
HOW += "and their folders are not classes"

REUSED = "nothing is held back of all tasks (fewer than 16 images): agreement with the sources is measured on "
REUSED += "images that the merge used, so it is optimistic"


def folder(root: Path, *paths: str) -> Folder:
    """A folder with a different image at every path."""
    for value, path in enumerate(paths):
        put(root / path, 100 + value)
    return Folder(root=str(root))


@pytest.mark.parametrize(
    "paths",
    [
        ("1.png", "2.jpg", "3.PNG"),
        ("1.png", "2024/05/2.png", "2023/3.png"),
        ("1.png", "Pets/2.png", "3.png"),  # images beside the folders
        ("2022/1.png", "2023/2.png", "2024/3.png"),
        ("cat/1.png", "dog/2.png", "bird/3.png"),
        ("train/1.png", "train/2.png", "train/3.png"),
        ("all/1.png", "all/2.png", "all/3.png", ".pets/4.png"),
    ],
)
def test_images_of_no_task_are_seen_by_every_source(tmp_path: Path, paths: tuple[str, ...]) -> None:
    data = folder(tmp_path, *paths)
    tests, images, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert [(own.kind, own.of, len(own.images or ())) for own in tests.measured] == [("merge", "all", 3)] * 2
    assert images.task.tolist() == [NO_TASK] * 3
    assert all(images.selected(source, "own").all() for source in (0, 1))
    assert notes == [HOW.format("all 3 images are"), REUSED]
    assert count_images(data, TASKS, lambda: PIXELS) == ([0, 0], [3, 3], 3, tuple(notes))


@pytest.mark.parametrize(
    "paths",
    [
        ("pets/1.png", "2.png"),  # cars are missing
        ("Pets/1.png", "Cars/2.png"),
        ("pet/1.png", "other/2.png", "third/3.png"),
        ("pets-2024/1.png", "a/2.png", "b/3.png"),
        ("Pets/1.png", "cars-2024/2.png", "stray.png"),
        ("first/1.png", "second/2.png"),  # one for each task
        ("train/pets/1.png", "train/cars/2.png"),
        ("notes.txt",),
    ],
)
def test_folders_that_may_be_meant_for_tasks_are_not_mixed(tmp_path: Path, paths: tuple[str, ...]) -> None:
    data = folder(tmp_path, *(path for path in paths if path.endswith(".png")))
    with pytest.raises(DataError, match=r"data=folder: no folder for task '(pets|cars)' in "):
        prepare_images(data, TASKS, lambda: PIXELS, seed=0)


def test_a_stray_image_beside_the_folders_of_the_tasks_is_only_noted(tmp_path: Path) -> None:
    data = folder(tmp_path, "pets/1.png", "pets/2.png", "cars/3.png", "stray.png")
    _, images, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert images.task.tolist() == [0, 0, 1]
    stray = f"images in {tmp_path} beside the tasks' folders were not used: stray.png"
    assert [note for note in notes if "beside" in note] == [stray]
    assert [note for note in count_images(data, TASKS, lambda: PIXELS)[3] if "beside" in note] == [stray]


def test_the_budget_is_that_of_all_tasks_and_a_share_is_held_out(tmp_path: Path) -> None:
    data = Folder(root=folder(tmp_path, *(f"{n}.png" for n in range(100))).root, images_per_task=40)
    _, images, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert (len(images), len(images.train), len(images.validation)) == (80, 72, 8)
    held = "there are no test images, so images are held back from the merge and measure it: 20 of all tasks "
    assert notes == [HOW.format("80 of the 100 images are"), f"{held}(data.held_back=0.2)"]
    again = prepare_images(data, TASKS, lambda: PIXELS, seed=0)[1]
    assert torch.equal(images.images, again.images)


def test_test_images_are_the_same_for_all_tasks_and_never_sampled(tmp_path: Path) -> None:
    data = folder(tmp_path, "train/a.png", "train/b.png", "test/x/c.png")
    put(tmp_path / "train/copy.png", 102)  # of test/x/c.png
    tests, images, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert [len(own) for own in tests.sets if own] == [1, 1]
    assert not any(own.labelled for own in tests.sets if own)
    assert len(images) == 2
    duplicate = f"the images: 1 duplicate of test images left out ({tmp_path}/train/copy.png is identical to "
    assert notes == [HOW.format("all 3 images are"), f"{duplicate}{tmp_path}/test/x/c.png)"]


def test_a_merge_says_what_mixed_images_cost_and_calls_none_of_them_auxiliary(tmp_path: Path) -> None:
    folder(tmp_path / "photos", *(f"{n}.png" for n in range(12)))
    (tmp_path / "photos/clip.heic").touch()
    data = {"name": "folder", "root": str(tmp_path / "photos")}
    costly = merge("digits_mlp_pair", method="regmean", data=data)
    how = HOW.format("all 12 images are").replace("pets, cars", "low, high")
    other = f"files in {tmp_path}/photos that are no images were not used: 1 x .heic"
    assert list(costly.notes) == [
        other,
        how,
        REUSED,
        "method=regmean fits every source to images of its own task, and it is not known which these are. That "
        "costs accuracy, and more of the joint accuracy (task not given). Folders named after the tasks avoid it",
    ]
    first = summary.verdict(costly.evaluation())[0]
    assert " (mean over tasks) of 12 images that the merge used (optimistic); for the plain average" in first
    assert costly.scores["merged"].chosen == {}
    costly.save(tmp_path / "run")
    with pytest.raises(DataError, match="data=folder has no test images for low, high"):
        evaluate(tmp_path / "run", data=data)
