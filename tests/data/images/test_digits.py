from __future__ import annotations

import pickle
import sys
from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images import digits as module
from fsmerge_cli.data.images.digits import Digits

PIXELS = ToPixels((1, 8, 8))
ALL = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def known() -> dict[bytes, int]:
    """The digit of each image, by its pixels; the 1797 images are all different."""
    bunch = load_digits()
    images = torch.tensor(bunch.images / 16).mul(255).round().to(torch.uint8)
    known = {image.numpy().tobytes(): int(digit) for image, digit in zip(images, bunch.target)}
    assert len(known) == 1797
    return known


def content(pixels: Tensor) -> bytes:
    return pixels.mul(255).round().to(torch.uint8).numpy().tobytes()


def build(split: str, *labels: str) -> ImageSet:
    return Digits().build(split, Task("task", labels), PIXELS)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_pixels_in_0_to_1_with_a_label_of_the_task(split: str) -> None:
    images = build(split, "5", "6", "7")
    assert images.labelled
    pairs = [images[i] for i in range(len(images))]
    assert {(tuple(pixels.shape), pixels.dtype) for pixels, _ in pairs} == {((1, 8, 8), torch.float32)}
    stacked = torch.stack([pixels for pixels, _ in pairs])
    assert (stacked.min().item(), stacked.max().item()) == (0.0, 1.0)
    assert {label for _, label in pairs} == {0, 1, 2}


@pytest.mark.parametrize("labels", [("0", "1", "2", "3", "4"), ("7", "3"), ("9",)])
def test_a_class_index_is_an_index_of_the_tasks_labels(labels: tuple[str, ...], known: dict[bytes, int]) -> None:
    for split in ("train", "test"):
        images = build(split, *labels)
        assert len(images)
        for i in range(len(images)):
            pixels, label = images[i]
            assert labels[label] == str(known[content(pixels)])


def test_train_and_test_are_a_partition_of_the_images(known: dict[bytes, int]) -> None:
    parts = {}
    for split in ("train", "test"):
        images = build(split, *ALL)
        parts[split] = {content(images[i][0]) for i in range(len(images))}
        assert len(parts[split]) == len(images)
    assert not parts["train"] & parts["test"]
    assert parts["train"] | parts["test"] == set(known)


def test_30_per_cent_of_every_class_are_test_images(known: dict[bytes, int]) -> None:
    images = build("test", *ALL)
    test = Counter(images[i][1] for i in range(len(images)))
    total = Counter(known.values())
    assert all(abs(test[digit] - 0.3 * total[digit]) <= 1 for digit in range(10))


def test_the_split_does_not_depend_on_the_task() -> None:
    one = build("test", "3", "4")
    other = build("test", *ALL)
    inside = {content(other[i][0]) for i in range(len(other))}
    assert all(content(one[i][0]) in inside for i in range(len(one)))


def test_images_have_the_input_size_of_the_sources() -> None:
    images = Digits().build("test", Task("task", ("1",)), ToPixels((3, 16, 12)))
    pixels, _ = images[0]
    assert pixels.shape == (3, 16, 12)
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


def test_an_image_set_can_be_pickled() -> None:
    images = build("test", "1", "2")
    again = pickle.loads(pickle.dumps(images))
    assert len(again) == len(images)
    assert torch.equal(again[3][0], images[3][0])
    assert again[3][1] == images[3][1]


@pytest.mark.parametrize(("labels", "shown"), [(("1", "ten"), "['1', 'ten']"), (("10",), "['10']"), (None, "[]")])
def test_labels_other_than_digits_are_refused(labels: tuple[str, ...] | None, shown: str) -> None:
    with pytest.raises(DataError) as error:
        Digits().build("train", Task("birds", labels), PIXELS)
    assert str(error.value) == (
        f"data=digits: the labels of task 'birds' are {shown}, and the data set has '0' to '9'. "
        "Pass models.sources.N.labels=[...] or another data=..."
    )


def test_a_missing_scikit_learn_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    module._load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError) as error:
        build("train", "1")
    assert str(error.value) == "data=digits needs scikit-learn: pip install scikit-learn"
    monkeypatch.undo()
    assert len(build("train", "1")) > 0
