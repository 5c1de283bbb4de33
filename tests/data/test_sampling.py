"""Training, validation and test images have no duplicates between them; images that are left out are reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fsmerge_cli import evaluate, merge
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.notes import notes_in
from fsmerge_cli.data import DataConfig, ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.draw import NO_TASK, digest
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.data.none import NoImages
from fsmerge_cli.data.pools import build_sets
from fsmerge_cli.data.sampling import count_images, prepare_images, read_test_images, sample_images
from fsmerge_cli.reporting import summary
from fsmerge_cli.reporting.model_card import escaped
from tests.support.bad_inputs.case import save
from tests.support.pictures import digests, images, picture
from tests.support.sources import mlp_source

PIXELS = ToPixels((1, 4, 4))
TASKS = [Task("a", ("a-0", "a-1", "a-2")), Task("b", ("b-0", "b-1", "b-2"))]


def test_an_image_that_is_left_out_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    data = Folder(root=images(tmp_path).root, images_per_task=20)
    before = prepare_images(data, TASKS, lambda: PIXELS, seed=0)[1]
    first = before.images[before.task == 0][3]
    Image.fromarray(first[0].mul(255).round().byte().numpy()).save(tmp_path / "b/test/b-0/duplicate.png")
    _, after, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert digest(first) not in digests(after.images)
    assert (after.task == 0).sum() == 20
    assert len(digests(before.images) & digests(after.images)) == 39
    assert len(notes) == 1


def test_tasks_with_the_same_images_do_not_train_on_each_others_validation_images(tmp_path: Path) -> None:
    images(tmp_path)
    tasks = [Task("a", TASKS[0].labels), Task("again", TASKS[0].labels)]
    (tmp_path / "again").symlink_to(tmp_path / "a")
    _, found, _ = prepare_images(Folder(root=str(tmp_path), images_per_task="all"), tasks, lambda: PIXELS, seed=0)
    assert not digests(found.images[found.validation]) & digests(found.images[found.train])
    assert {*found.task.tolist()} == {0, 1}


def test_skipped_files_are_left_out_of_both_splits_and_reported(tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "a/train/000.png").write_bytes(b"no image")
    (tmp_path / "a/train/.hidden.png").write_bytes(b"no image")
    (tmp_path / "b/test/b-1/004.png").write_bytes(b"")
    data = Folder(root=str(tmp_path), images_per_task="all", bad_files="skip")
    tests, found, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert [len(own) for own in tests.sets if own] == [6, 5]
    assert [own.classes for own in tests.sets if own] == [(0, 0, 1, 1, 2, 2), [0, 0, 1, 2, 2]]
    assert [own.title(3) for own in tests.sets if own] == [
        f"{tmp_path}/a/test/a-1/004.png",
        f"{tmp_path}/b/test/b-2/002.png",
    ]
    assert len(found) == 79
    assert notes == [
        f"task 'a': 1 image skipped, unreadable: {tmp_path}/a/train/000.png",
        f"task 'b': 1 test image skipped, unreadable: {tmp_path}/b/test/b-1/004.png",
    ]


def test_all_unreadable_test_images_are_reported_in_one_error(tmp_path: Path) -> None:
    data = images(tmp_path, test=12)
    for n in range(12):
        (tmp_path / f"b/test/b-{n % 3}/{n:03}.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        read_test_images(build_sets(data, "test", TASKS, PIXELS), TASKS)
    lines = str(error.value).splitlines()
    assert lines[0] == "12 images cannot be read:"
    assert lines[1].startswith(f"  - the image {tmp_path}/b/test/b-0/000.png cannot be read (")
    assert lines[11:] == ["  - and 2 more"]


def test_only_unreadable_test_images_count_as_none(tmp_path: Path) -> None:
    images(tmp_path, test=1)
    (tmp_path / "b/test/b-0/000.png").write_bytes(b"")
    data = Folder(root=str(tmp_path), bad_files="skip")
    found = read_test_images(build_sets(data, "test", TASKS, PIXELS), TASKS)
    assert [own is None for own in found.sets] == [False, True]


# Auxiliary images


def counts(data: DataConfig) -> Any:
    return count_images(data, TASKS, lambda: PIXELS)


@pytest.mark.full
def test_the_counts_are_those_of_the_sampled_images(tmp_path: Path) -> None:
    folder = images(tmp_path)
    augmented = Folder(
        root=folder.root, images_per_task=10, augment="shift", views=2, auxiliary={"name": "generated"}
    )
    for data, expected in (
        (folder, ([40, 40], [6, 6], 0)),
        (augmented, ([30, 30], [6, 6], 2000)),
        (NoImages(images_per_task=50, augment="shift"), ([0, 0], [16, 16], 250)),
        (NoImages(images_per_task=7, auxiliary={"name": "glyphs", "labels": "symbols"}), ([0, 0], [200, 200], 7)),
    ):
        assert counts(data)[:3] == expected
        tests, found, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
        assert [len(own) for own in tests.sets if own] == expected[1]
        assert set(counts(data)[3]) <= set(notes)
        tally = [int((found.task == task).sum()) for task in (0, 1, NO_TASK)]
        assert tally == [*expected[0], expected[2]]


def pair(folder: Path) -> list[dict[str, str]]:
    for seed, name in enumerate("ab"):
        save(folder / name, mlp_source(name, [8, 8], seed))
    return [{"name": name, "checkpoint": str(folder / name)} for name in "ab"]


@pytest.mark.full
def test_a_merge_without_task_images_is_reported_everywhere(tmp_path: Path) -> None:
    data = {"name": "none", "images_per_task": 30}
    found = merge(pair(tmp_path), data=data, method={"name": "kd", "steps": 2}, output=tmp_path / "out")
    assert found.notes[:2] == (
        "30 auxiliary unlabelled images (generated)",
        "there are no test images, so images are held back from the merge and measure it: 16 of the auxiliary "
        "images (data.held_back=0.2)",
    )
    assert found.cost["images"] == 30
    same = [found.scores[name].agreement.values() for name in ("merged", "average")]
    merged, average = (f"{100 * sum(n for _, n in own) / 32:.1f} %" for own in same)
    sentences = (
        f"The merged model and its source predict the same label on {merged} (mean over tasks) of 16 auxiliary "
        f"images held back from the merge; for the plain average it is {average}. The images have no labels, so "
        "the accuracy is not known. The merge used no images of its tasks, only generated images."
    )
    assert " ".join(summary.verdict(found.evaluation())) == sentences
    assert found.scores["merged"].chosen == {}  # these images belong to no task
    assert escaped(sentences) in (tmp_path / "out/merged/README.md").read_text()
    assert sentences.replace(" %", "&nbsp;%") in (tmp_path / "out/report.html").read_text()


@pytest.mark.full
def test_labelled_test_images_suffice_to_evaluate_a_merge_without_task_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", train=0)
    data = {
        "name": "folder",
        "root": folder.root,
        "images_per_task": 0,
        "auxiliary": {"name": "generated", "images_per_task": 40},
    }
    sources = pair(tmp_path)
    for entry in sources:
        entry["labels"] = "data"  # those of the test folders, as there are no others
    found = merge(sources, data=data, method={"name": "fs_merge", "steps": 2}, output=tmp_path / "out")
    guesses = tuple(
        f"'{task}': the rows of its head are taken to be the classes of the data set in their order (0: "
        f"'{task}-0', 1: '{task}-1', 2: '{task}-2')"
        for task in "ab"
    )
    assert tuple(notes_in(found.notes)) == ("40 auxiliary unlabelled images (generated)", *guesses)
    assert found.cost["images"] == 40
    merged = found.scores["merged"]
    assert merged.tasks["a"].count == 6
    assert (
        summary.verdict(found.evaluation())[-1] == "The merge used no images of its tasks, only generated images."
    )

    # Temperatures are fitted to the predictions of the sources; for the sources themselves they are 1.
    plain = found.scores["ensemble"]
    assert plain.temperatures == {"a": 1.0, "b": 1.0}
    assert plain.joint["softmax"] == plain.joint["softmax_calibrated"]
    assert merged.temperatures.keys() == {"a", "b"}
    again = evaluate(tmp_path / "out", data="from_run", sources=True)
    assert again.scores["merged"].temperatures == pytest.approx(merged.temperatures, rel=1e-4)
    assert tuple(notes_in(again.notes)) == ("40 auxiliary unlabelled images (generated)",)


def test_auxiliary_images_next_to_those_of_the_tasks_are_reported(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    data = {
        "name": "folder",
        "root": folder.root,
        "images_per_task": 5,
        "auxiliary": {"name": "folder", "root": str(tmp_path / "more")},
    }
    for n in range(3):
        picture(tmp_path / f"more/{n}.png", 5000 + n)
    found = merge(pair(tmp_path), data=data, method="average")
    assert "3 auxiliary unlabelled images (data=folder)" in found.notes
    assert found.cost["images"] == 13
    assert (
        summary.verdict(found.evaluation())[-1]
        == "In addition to images of its tasks, the merge used auxiliary unlabelled images (data=folder)."
    )


def test_the_hash_of_the_test_images_does_not_depend_on_the_sample(tmp_path: Path) -> None:
    data = images(tmp_path)

    def tests_sha256(data: DataConfig, tasks: list[Task] = TASKS) -> str:
        return prepare_images(data, tasks, lambda: PIXELS, seed=0)[0].sha256

    first = tests_sha256(data)
    auxiliary = {"name": "generated", "images_per_task": 5}
    assert tests_sha256(replace(data, images_per_task=3, validation=0.0, auxiliary=auxiliary)) == first
    assert tests_sha256(data, TASKS[::-1]) == first
    assert tests_sha256(data, TASKS[:1]) != first
    moved = sorted((tmp_path / "a/test").rglob("*.png"))[0]
    content = moved.read_bytes()
    picture(moved, 9999)  # the same number of images, one of them replaced
    assert tests_sha256(data) != first
    moved.write_bytes(content)
    assert tests_sha256(data) == first
    other = sorted((tmp_path / "a/test").rglob("*.png"))[-1]
    moved.write_bytes(other.read_bytes())
    other.write_bytes(content)  # the same images, with each other's labels
    assert tests_sha256(data) != first


def test_an_empty_sample_is_valid(tmp_path: Path) -> None:
    data = Folder(root=images(tmp_path).root, images_per_task=0)
    tests, found, notes = prepare_images(data, TASKS, lambda: PIXELS, seed=0)
    assert len(found) == 0
    assert [isinstance(own, ImageSet) for own in tests.sets] == [True, True]
    assert notes == []
    assert sample_images(NoImages(images_per_task=1), TASKS, PIXELS, read_test_images([None, None], TASKS), 0)[
        0
    ].task.tolist() == [NO_TASK]
