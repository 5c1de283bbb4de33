from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from fsmerge_cli.data import DataConfig, ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.draw import Images, draw
from fsmerge_cli.data.images.digits import Digits


def indexed(size: int, task: int = 0) -> ImageSet:
    """Image i encodes its index in two pixels and its task in a third."""

    def read(i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.array([[i // 250, i % 250, task]], dtype=np.uint8)), 0

    return ImageSet(size, read, ToPixels((1, 1, 3)), labelled=True)


def blobs(size: int, task: int = 0) -> ImageSet:
    """Images with a square in the centre, which a shift moves."""

    def read(i: int) -> tuple[Image.Image, int]:
        pixels = np.zeros((16, 16), dtype=np.uint8)
        pixels[6:10, 6:10] = i + 1 + 100 * task
        return Image.fromarray(pixels), 0

    return ImageSet(size, read, ToPixels((1, 16, 16)), labelled=True)


def indices(images: Images, task: int, rows: torch.Tensor | None = None) -> list[int]:
    rows = torch.arange(len(images)) if rows is None else rows
    rows = rows[images.task[rows] == task]
    high, low, _ = images.images[rows, 0, 0].mul(255).round().long().unbind(1)
    return (250 * high + low).tolist()


def config(per_task: int | str, **options: object) -> DataConfig:
    return Digits(images_per_task=per_task, **options)  # type: ignore[arg-type]


def both(per_task: int | str, sizes: Sequence[int] = (300, 400), seed: int = 0, **options: object) -> Images:
    return draw(config(per_task, **options), [indexed(size, i) for i, size in enumerate(sizes)], seed)[0]


def test_a_sample_has_images_per_task_different_images_of_every_task() -> None:
    images = both(50)
    assert images.images.shape == (100, 1, 1, 3)
    assert images.task.tolist() == [0] * 50 + [1] * 50
    for task, size in enumerate((300, 400)):
        sampled = indices(images, task)
        assert len(set(sampled)) == 50
        assert all(0 <= n < size for n in sampled)


@pytest.mark.parametrize("task", [0, 1])
def test_a_smaller_sample_is_part_of_a_larger_one(task: int) -> None:
    small, middle, large = (indices(both(n), task) for n in (10, 50, 200))
    assert small == middle[:10]
    assert middle == large[:50]


def test_the_validation_images_are_part_of_those_of_a_larger_sample() -> None:
    small, large = both(50), both(200)
    for task in (0, 1):
        kept = [indices(images, task, images.validation) for images in (small, large)]
        assert kept[0] == kept[1][: len(kept[0])]


def test_a_sample_depends_only_on_the_seed() -> None:
    torch.manual_seed(1)
    one = both(50, seed=3)
    torch.manual_seed(2)
    two = both(50, seed=3)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.train, two.train)
    assert torch.equal(one.validation, two.validation)
    assert indices(both(50, seed=4), 0) != indices(one, 0)


def test_tasks_of_the_same_size_have_different_samples() -> None:
    images = both(50, sizes=(300, 300))
    assert indices(images, 0) != indices(images, 1)


def test_fewer_images_than_requested_are_all_taken() -> None:
    images = both(50, sizes=(7, 400))
    assert sorted(indices(images, 0)) == list(range(7))
    assert len(indices(images, 1)) == 50


def test_all_takes_every_image_once() -> None:
    images = both("all", sizes=(40, 60))
    assert sorted(indices(images, 0)) == list(range(40))
    assert sorted(indices(images, 1)) == list(range(60))


@pytest.mark.parametrize("sets", [0, 2])
def test_an_empty_sample_is_valid(sets: int) -> None:
    images, _ = draw(config(0), [indexed(5)] * sets, 0)
    assert len(images) == len(images.task) == len(images.train) == len(images.validation) == 0


def test_training_and_validation_are_a_partition() -> None:
    images = both(100, validation=0.2)
    assert sorted([*images.train.tolist(), *images.validation.tolist()]) == list(range(200))
    for task in (0, 1):
        assert len(indices(images, task, images.validation)) == 20


@pytest.mark.parametrize(
    ("per_task", "sizes", "kept"),
    [
        (31, (300, 400), 0),
        (32, (300, 400), 3),
        (100, (300, 400), 10),
        (100, (31, 400), 0),
        (100, (32, 400), 3),
        ("all", (31, 31), 0),
        ("all", (32, 32), 3),
    ],
)
def test_images_are_held_out_for_validation_from_32_per_task_on(
    per_task: int | str, sizes: tuple[int, int], kept: int
) -> None:
    images = both(per_task, sizes)
    assert len(indices(images, 0, images.validation)) == kept
    assert len(images.train) == len(images) - len(images.validation)


def test_a_validation_share_of_0_holds_out_no_image() -> None:
    assert len(both(100, validation=0.0).validation) == 0


def test_the_largest_validation_share_leaves_a_training_image() -> None:
    images = both(40, validation=0.999)
    for task in (0, 1):
        assert len(indices(images, task, images.train)) >= 1
        assert len(indices(images, task, images.validation)) >= 1


def test_only_training_images_get_views() -> None:
    images, _ = draw(config(40, augment="shift", views=3), [blobs(50), blobs(60, 1)], 0)
    plain, _ = draw(config(40), [blobs(50), blobs(60, 1)], 0)
    kept, trained = 4, 36
    assert len(images.validation) == 2 * kept
    assert len(images.train) == 2 * trained * (1 + 3)
    assert torch.equal(images.images[images.validation], plain.images[plain.validation])
    for task in (0, 1):
        rows = images.train[images.task[images.train] == task]
        assert len(rows) == trained * 4
        value = images.images.amax((1, 2, 3))
        assert not set(value[rows].tolist()) & set(
            value[images.validation[images.task[images.validation] == task]].tolist()
        )
        originals = plain.images[plain.train[plain.task[plain.train] == task]]
        assert torch.equal(images.images[rows[:trained]], originals)
        views = images.images[rows[trained:]].reshape(trained, 3, 1, 16, 16)
        assert torch.equal(views.amax((2, 3, 4)), originals.amax((1, 2, 3))[:, None].expand(-1, 3))
        moved = (views != originals[:, None]).flatten(1).any(1)
        assert moved.float().mean() > 0.9


def test_views_depend_only_on_the_seed_and_the_image() -> None:
    def views(per_task: int, seed: int, number: int = 2) -> torch.Tensor:
        options = config(per_task, augment="shift", views=number, validation=0.0)
        return draw(options, [blobs(50)], seed)[0].images[per_task:].reshape(per_task, number, -1)

    torch.manual_seed(5)
    one = views(10, 0)
    state = torch.get_rng_state()
    assert torch.equal(views(10, 0), one)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(views(20, 0)[:10], one)
    assert torch.equal(views(10, 0, number=5)[:, :2], one)
    assert not torch.equal(views(10, 1), one)


def test_test_images_are_never_sampled() -> None:
    tasks = [Task("low", ("0", "1", "2", "3", "4")), Task("high", ("5", "6", "7", "8", "9"))]
    pixels = ToPixels((1, 8, 8))
    train, test = (
        [Digits().build(split, task, pixels) for task in tasks]  # type: ignore[arg-type]
        for split in ("train", "test")
    )
    images, _ = draw(config("all"), train, 0)
    assert len(images) == sum(len(own) for own in train)
    sampled = {image.numpy().tobytes() for image in images.images}
    held_out = {own[i][0].numpy().tobytes() for own in test for i in range(len(own))}
    assert len(held_out) == 540
    assert not sampled & held_out
