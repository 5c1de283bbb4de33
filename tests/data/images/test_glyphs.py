from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data.base import Task, ToPixels
from fsmerge_cli.data.images.glyphs import ALPHABETS, TEST_FONTS, TRAIN_FONTS, Glyphs

PIXELS = ToPixels((1, 24, 24))


def task(alphabet: str) -> Task:
    return Task(alphabet, tuple(ALPHABETS[alphabet]))


def test_eight_alphabets_share_no_character() -> None:
    assert len(ALPHABETS) == 8
    characters = "".join(ALPHABETS.values())
    assert len(set(characters)) == len(characters)
    assert min(map(len, ALPHABETS.values())) >= 10
    assert Glyphs.label_sets() == {name: tuple(own) for name, own in ALPHABETS.items()}


def test_train_and_test_share_no_font() -> None:
    assert not set(TRAIN_FONTS) & set(TEST_FONTS)


@pytest.mark.full
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_classes_are_balanced_and_every_character_is_drawn(alphabet: str) -> None:
    data = Glyphs(train_images=3, test_images=2)
    for split, copies in (("train", 3), ("test", 2)):
        images = data.build(split, task(alphabet), PIXELS)
        labels = [images[i][1] for i in range(len(images))]
        assert labels == list(range(len(ALPHABETS[alphabet]))) * copies
        first = torch.stack([images[i][0] for i in range(len(ALPHABETS[alphabet]))])
        assert first.shape[1:] == (1, 24, 24)
        assert (first.flatten(1).std(1) > 0.02).all()
        flat = first.flatten(1) - first.flatten(1).mean(1, keepdim=True)
        flat /= flat.norm(dim=1, keepdim=True)
        cosine = flat @ flat.T - 2 * torch.eye(len(flat))
        assert cosine.max() < 0.99  # no two characters look the same


def test_an_image_does_not_depend_on_the_order_of_access() -> None:
    one, two = (Glyphs().build("train", task("greek"), PIXELS) for _ in range(2))
    forward = [one[i][0] for i in (0, 5, 77)]
    backward = [two[i][0] for i in (77, 5, 0)][::-1]
    assert all(map(torch.equal, forward, backward))


def test_an_image_does_not_depend_on_the_other_labels() -> None:
    whole = Glyphs().build("test", task("digits"), PIXELS)
    part = Glyphs().build("test", Task("some", ("7", "3")), PIXELS)
    assert torch.equal(part[0][0], whole[7][0])
    assert torch.equal(part[3][0], whole[13][0])
    assert part[3][1] == 1


def test_train_and_test_images_differ() -> None:
    data = Glyphs(train_images=5, test_images=5)
    train, test = (data.build(split, task("hebrew"), PIXELS) for split in ("train", "test"))
    seen = {train[i][0].numpy().tobytes() for i in range(len(train))}
    assert len(seen) == len(train)
    assert not any(test[i][0].numpy().tobytes() in seen for i in range(len(test)))


def test_the_size_is_an_option() -> None:
    image, _ = Glyphs(size=32).build("train", task("symbols"), ToPixels((1, 32, 32))).read(0)
    assert np.asarray(image).shape == (32, 32)


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        (("0", "ten"), "the labels 'ten' of task 'x' are in none of its alphabets"),
        (None, "task 'x' has no labels, so there is nothing to draw"),
    ],
)
def test_labels_that_cannot_be_drawn_are_reported(labels: tuple[str, ...] | None, wrong: str) -> None:
    with pytest.raises(DataError) as error:
        Glyphs().build("train", Task("x", labels), PIXELS)
    listed = ", ".join(f"{name} ({characters})" for name, characters in ALPHABETS.items())
    assert str(error.value) == (
        f"data=glyphs: {wrong}. The alphabets are {listed}. "
        "Pass models.sources.N.labels=[...] with single characters, or another data=..."
    )


def test_the_yaml_holds_the_defaults() -> None:
    shipped = presets.load("data", "glyphs")
    assert shipped == {f.name: f.default for f in fields(Glyphs)}
