"""The batched augmentation, compared with torchvision's affine map and with values computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from fsmerge_cli.data.images import strong as module
from fsmerge_cli.data.images.strong import strong

QUIET = {"TURN": 0.0, "SHEAR": 0.0, "SHIFT": 0.0, "SCALE": (1.0, 1.0), "NOISE": 0.0, "BLURRED": 0.0} | {
    "BRIGHTNESS": (1.0, 1.0),
    "CONTRAST": (1.0, 1.0),
}
Only = Callable[..., None]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Only:
    """Turn off all parts of the augmentation except the given ones."""

    def leave(**values: object) -> None:
        for name, value in (QUIET | values).items():
            monkeypatch.setattr(module, name, value)

    return leave


def pictures(n: int = 6, height: int = 12, width: int = 16) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def augmented(pixels: Tensor, seed: int = 0) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return strong(pixels)


def test_without_any_part_nothing_changes(only: Only) -> None:
    only()
    torch.testing.assert_close(augmented(pictures()), pictures(), atol=1e-5, rtol=0)
    torch.testing.assert_close(augmented(pictures()[0]), pictures()[0], atol=1e-5, rtol=0)


def test_images_are_changed_independently_and_reproducibly() -> None:
    same = pictures(1).expand(8, -1, -1, -1)
    after = augmented(same)
    assert torch.equal(after, augmented(same))
    assert not torch.equal(after, augmented(same, 1))
    assert all(not torch.allclose(after[i], after[j]) for i in range(8) for j in range(i))
    assert 0 <= after.min() <= after.max() <= 1


def test_the_affine_map_equals_torchvisions(only: Only, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smooth image that fades out at the border, so that the padding does not matter."""
    only(TURN=0.2, SHEAR=0.2, SHIFT=0.1, SCALE=(0.8, 1.25))
    y, x = torch.linspace(-1, 1, 40)[:, None], torch.linspace(-1, 1, 60)[None]
    picture = (torch.exp(-8 * ((x - 0.1) ** 2 + (y + 0.1) ** 2)) * (1 + 0.5 * torch.sin(6 * x + 3 * y)))[None] / 2
    shares = torch.tensor([0.9, 0.2, 0.8, 0.3, 0.75, 0.0, 0.0, 0.0, 1.0, 0.0])
    monkeypatch.setattr(torch, "rand", lambda n, k: shares[None].expand(n, k))
    found = strong(picture)
    turn, shear, right, down = (2 * shares[:4] - 1).tolist()
    degrees = 180 / torch.pi
    expected = tv.affine(
        picture,
        angle=0.2 * turn * degrees,
        translate=[0.1 * right * 60, 0.1 * down * 40],
        scale=0.8 + 0.45 * 0.75,
        shear=[0.2 * shear * degrees, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    assert (picture - expected).abs().max() > 0.2
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_brightness_contrast_blur_and_noise(only: Only) -> None:
    before = pictures(200)
    only(BRIGHTNESS=(0.5, 0.5))
    torch.testing.assert_close(augmented(before), before / 2, atol=1e-5, rtol=0)
    only(CONTRAST=(0.5, 0.5))
    middle = before.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(augmented(before), (before + middle) / 2, atol=1e-5, rtol=0)
    only(BLURRED=1.0, WIDTH=(0.8, 0.8))
    expected = tv.gaussian_blur(before, [3, 3], [0.8, 0.8])
    torch.testing.assert_close(augmented(before)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5, rtol=0)
    only(BLURRED=0.25)
    blurred = (augmented(before) - before).abs().amax((1, 2, 3)) > 1e-4
    assert 0.15 < blurred.double().mean() < 0.35
    only(NOISE=0.1)
    spread = (augmented(before / 10 + 0.45) - before / 10 - 0.45).std((1, 2, 3))
    assert 0.09 < spread.max() < 0.11
    assert 0.04 < spread.mean() < 0.06


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (2, 2)])
def test_images_of_one_row_or_column_keep_their_shape(size: tuple[int, int]) -> None:
    assert augmented(torch.rand(3, 1, *size)).shape == (3, 1, *size)
