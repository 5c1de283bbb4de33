"""Images that measure a merge where a task has no test images are not used by it, or are named where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.data import DataConfig, Task
from fsmerge_cli.data.draw import digest
from fsmerge_cli.data.held_back import Kind
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.data.images.generated import Generated
from fsmerge_cli.data.none import NoImages
from fsmerge_cli.data.sampling import TestImages, prepare_images
from tests.data.test_sampling import PIXELS, picture

TASKS = [Task("a", ("x", "y")), Task("b", ("x", "y"))]


def flat(root: Path, a: int, b: int) -> Folder:
    for place, (task, count) in enumerate({"a": a, "b": b}.items()):
        for n in range(count):
            picture(root / task / f"{n:03}.png", 1000 * place + n)
    return Folder(root=str(root))


def prepared(data: DataConfig) -> tuple[TestImages, Any, list[str]]:
    return prepare_images(data, TASKS, lambda: PIXELS, seed=0)


def seen(tests: TestImages) -> set[bytes]:
    return {digest(own[row][0]) for own in tests.sets if own for row in range(len(own))}


def used(images: Any) -> set[bytes]:
    return {digest(pixels) for pixels in images.images}


def kinds(tests: TestImages) -> list[tuple[Kind, int]]:
    return [(own.kind, len(own.images)) for own in tests.measured if own.images]


@pytest.mark.full
@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (15, ("merge", 15, 15)),
        (16, ("held_back", 3, 13)),
        (100, ("held_back", 20, 80)),
        (130, ("held_back", 30, 100)),
        (400, ("held_back", 200, 100)),
    ],
)
def test_the_number_of_images_that_are_held_back(
    tmp_path: Path, available: int, expected: tuple[Kind, int, int]
) -> None:
    tests, images, _ = prepared(flat(tmp_path, available, 20))
    kind, measured, taken = expected
    assert kinds(tests) == [(kind, measured), ("held_back", 4)]
    assert int((images.task == 0).sum()) == taken
    if kind == "held_back":
        assert not seen(tests) & used(images)


def test_a_merge_of_more_images_than_it_takes_is_that_without_images_held_back(tmp_path: Path) -> None:
    data = flat(tmp_path, 140, 150)
    assert prepared(data)[1].images.equal(prepared(replace(data, held_back=0.0))[1].images)


def test_images_that_the_merge_uses_are_named_and_have_no_labels(tmp_path: Path) -> None:
    for n in range(30):
        picture(tmp_path / f"a/train/{'xy'[n % 2]}/{n:03}.png", n)
        picture(tmp_path / f"b/test/{'xy'[n % 2]}/{n:03}.png", 1000 + n)
    picture(tmp_path / "b/train/0.png", 2000)
    data = Folder(root=str(tmp_path), held_back=0.0)
    tests, images, notes = prepared(data)
    assert kinds(tests) == [("merge", 30), ("test", 30)]
    assert {tests.sets[0][row][1] for row in range(30)} == {-1}  # type: ignore[index]
    assert len(images) == 31
    assert notes[-1] == (
        "nothing is held back of 'a' (data.held_back=0): agreement with the sources is measured on images that "
        "the merge used, so it is optimistic"
    )
    held, _, _ = prepared(replace(data, held_back=0.2))
    assert kinds(held) == [("held_back", 6), ("test", 30)]
    assert {held.sets[0][row][1] for row in range(6)} <= {0, 1}  # type: ignore[index]


def test_a_duplicate_of_an_image_that_is_held_back_is_left_out(tmp_path: Path) -> None:
    data = flat(tmp_path, 20, 20)
    tests, _, _ = prepared(data)
    last = tests.sets[0].title(0)  # type: ignore[union-attr]
    number = int(Path(last).stem)
    picture(tmp_path / "b/copy.png", number)
    found, images, notes = prepared(data)
    assert not seen(found) & used(images)
    held = "copy.png" in [Path(found.sets[1].title(i)).name for i in range(4)]  # type: ignore[union-attr]
    assert held or any("duplicate of held-back images left out" in note for note in notes)


@pytest.mark.parametrize("data", [Generated(images_per_task=40), NoImages(images_per_task=40)])
def test_generated_images_that_measure_are_more_of_them(data: DataConfig) -> None:
    tests, images, notes = prepared(data)
    assert kinds(tests) == [("held_back", 16), ("held_back", 16)]
    assert len(images) == 40
    assert not seen(tests) & used(images)
    assert notes[-1] == (
        "there are no test images, so images are held back from the merge and measure it: 16 of the auxiliary "
        "images (data.held_back=0.2)"
    )


def test_auxiliary_images_measure_tasks_without_images(tmp_path: Path) -> None:
    flat(tmp_path / "own", 30, 30)
    auxiliary = {"name": "folder", "root": str(tmp_path / "own/a")}
    tests, images, _ = prepared(NoImages(images_per_task=1000, auxiliary=auxiliary))
    assert kinds(tests) == [("held_back", 6), ("held_back", 6)]
    assert len(images) == 24
    assert not seen(tests) & used(images)


def test_one_folder_for_all_tasks_is_measured_on_the_same_images(tmp_path: Path) -> None:
    for n in range(50):
        picture(tmp_path / f"{n:03}.png", n)
    tests, images, notes = prepared(Folder(root=str(tmp_path), images_per_task="all"))
    assert [(own.kind, own.of, len(own.images or ())) for own in tests.measured] == [("held_back", "all", 10)] * 2
    assert len(images) == 40
    assert not seen(tests) & used(images)
    assert notes[-1] == (
        "there are no test images, so images are held back from the merge and measure it: 10 of all tasks "
        "(data.held_back=0.2)"
    )
