"""New views of the images of a batch: augmentation and mixing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fsmerge_cli.data.images.augment import Augment, augmentation, mixed, new_views

AUGMENTS: tuple[Augment, ...] = ("shift", "paper", "strong")


def random_pixels(n: int, channels: int = 1, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmented_images_keep_shape_and_range_and_differ(augment: Augment, channels: int) -> None:
    before = random_pixels(12, channels)
    after, other = new_views(before, augment, 0.0, seed=0, step=0)
    assert torch.equal(other, torch.arange(12))
    assert after.shape == before.shape
    assert 0 <= after.min() <= after.max() <= 1
    assert not any(torch.equal(a, b) for a, b in zip(after, before))


@pytest.mark.parametrize(("augment", "mixup"), [("strong", 0.0), ("none", 0.9), ("paper", 0.5)])
def test_new_views_depend_only_on_seed_and_step(augment: Augment, mixup: float) -> None:
    def views(seed: int, step: int) -> Tensor:
        torch.manual_seed(seed + step)  # the state of the global generator must not matter
        before = torch.random.get_rng_state()
        found = new_views(random_pixels(9), augment, mixup, seed, step)[0]
        assert torch.equal(before, torch.random.get_rng_state())
        return found

    assert torch.equal(views(3, 4), views(3, 4))
    assert not torch.equal(views(3, 4), views(3, 5))
    assert not torch.equal(views(3, 4), views(2, 4))


def test_a_mixed_image_keeps_at_least_half_of_itself() -> None:
    pixels = torch.arange(400.0)[:, None, None, None].expand(400, 1, 8, 8)
    after, other = mixed(pixels, 0.5, torch.Generator().manual_seed(0))
    changed = (after != pixels).flatten(1).any(1)
    assert 0.4 < changed.double().mean() < 0.6
    blended = torch.tensor([len(set(image.flatten().tolist())) == 1 for image in after]) & changed
    assert 0.2 < blended.double().mean() < 0.3  # one half of the mixtures is blended, the other pasted
    pasted = changed & ~blended
    own = (after == pixels).flatten(1).double().mean(1)
    assert own[pasted].min() >= 0.5
    assert bool((other != torch.arange(400))[changed].all())
    assert 0.4 < (other == torch.arange(400)).double().mean() < 0.6
    share = (after[blended, 0, 0, 0] - pixels[blended, 0, 0, 0]) / (other - torch.arange(400))[blended]
    assert 0 <= share.min() <= share.max() <= 0.5 + 1e-6


def test_pasted_pixels_are_one_rectangle_of_the_other_image() -> None:
    pixels = torch.arange(60.0)[:, None, None, None].expand(60, 1, 12, 12)
    after, _ = mixed(pixels, 0.99, torch.Generator().manual_seed(5))
    seen = 0
    for i, image in enumerate(after[:, 0]):
        values = set(image.flatten().tolist()) - {float(i)}
        if len(values) != 1 or not (image == i).any():
            continue
        rows, columns = (image != i).any(1).nonzero(), (image != i).any(0).nonzero()
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert int((image != i).sum()) == int(height * width)
        seen += 1
    assert seen > 10


def test_transforms_are_cached() -> None:
    assert augmentation("paper", (16, 16)) is augmentation("paper", (16, 16))
    assert torch.equal(augmentation("none", (4, 4))(random_pixels(1)), random_pixels(1))
