"""Training, validation and test images have no duplicates between them; images that are left out are reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.draw import digest
from fsmerge_cli.data.sampling import prepare_images
from tests.support.pictures import digests, images, picture

PIXELS = ToPixels((1, 4, 4))
TASKS = [Task("a", ("a-0", "a-1", "a-2")), Task("b", ("b-0", "b-1", "b-2"))]


def test_different_images_are_all_kept(tmp_path: Path) -> None:
    tests, found, notes = prepare_images(images(tmp_path), TASKS, lambda: PIXELS, seed=0)
    assert [len(own) for own in tests.sets if own] == [6, 6]
    assert len(found) == len(digests(found.images)) == 80
    assert notes == []


def test_duplicates_of_test_images_of_any_task_and_format_are_left_out(tmp_path: Path) -> None:
    data = images(tmp_path)
    picture(tmp_path / "a/train/own.bmp", 503)
    picture(tmp_path / "b/train/others.png", 504)
    tests, found, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    held_out = {digest(own[i][0]) for own in tests.sets if own for i in range(len(own))}
    assert len(held_out) == 12
    assert not digests(found.images) & held_out
    assert len(found) == 80
    assert notes == [
        f"task 'a': 1 duplicate of test images left out ({tmp_path}/a/train/own.bmp is identical to "
        f"{tmp_path}/a/test/a-0/003.png)",
        f"task 'b': 1 duplicate of test images left out ({tmp_path}/b/train/others.png is identical to "
        f"{tmp_path}/a/test/a-1/004.png)",
    ]


def test_validation_and_training_never_share_an_image(tmp_path: Path) -> None:
    """Every image has a duplicate, so most validation images would otherwise be trained on too."""
    data = images(tmp_path)
    for task in "ab":
        for path in sorted((tmp_path / task / "train").iterdir()):
            path.with_name(f"again-{path.name}").write_bytes(path.read_bytes())
    _, found, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    validated, trained = digests(found.images[found.validation]), digests(found.images[found.train])
    assert len(validated) >= 8
    assert not validated & trained
    assert len(validated | trained) == 80
    assert len(notes) == 2
    assert all(", ...)" in note and "duplicates of validation images left out" in note for note in notes)


def test_a_task_whose_images_all_measure_it_is_refused(tmp_path: Path) -> None:
    """Otherwise a method would complain of a data set without images, or train on the other tasks alone."""
    data = images(tmp_path, train=6, test=6)
    for n in range(6):
        (tmp_path / f"b/test/b-{n % 3}").mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "b"
    for path in (folder / "train").iterdir():
        (folder / "test" / "b-0" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError) as error:
        prepare_images(data, TASKS, lambda: PIXELS, seed=0, needed=True)
    assert len(prepare_images(data, TASKS, lambda: PIXELS, seed=0)[1]) == 6  # for a method without images
    text = re.sub(
        r"/train/\d+\.png and (\S+)/test/b-0/\d+\.png", r"/train/N.png and \1/test/b-0/N.png", str(error.value)
    )
    assert text == (
        f"task 'b': no image is left: 6 are identical to test images (such as {folder}/train/N.png and "
        f"{folder}/test/b-0/N.png), and a merge does not train on what measures it. Pass other images for one of "
        "the two."
    )
