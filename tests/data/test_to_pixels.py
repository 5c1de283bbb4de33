"""Conversion of images of any mode and size to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data.base import ToPixels


def test_colour_becomes_grey_and_grey_becomes_colour(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (2, 2), 51).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "red.png") as red, Image.open(tmp_path / "grey.png") as grey:
        assert torch.equal(ToPixels((3, 2, 2))(red)[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
        assert torch.equal(ToPixels((1, 2, 2))(red), torch.full((1, 2, 2), 76 / 255))
        assert torch.equal(ToPixels((3, 2, 2))(grey), torch.full((3, 2, 2), 51 / 255))
        assert torch.equal(ToPixels((1, 2, 2))(grey), torch.full((1, 2, 2), 51 / 255))


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "1", "LA"])
def test_every_image_mode_is_converted(mode: str) -> None:
    image = Image.new("RGB", (2, 2), (255, 255, 255)).convert(mode)
    for channels in (1, 3):
        assert torch.equal(ToPixels((channels, 2, 2))(image), torch.ones(channels, 2, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_images_are_scaled_and_not_clipped(channels: int, tmp_path: Path) -> None:
    depth = np.array([[0, 257 * 51], [257 * 204, 65535]], dtype=np.uint16)
    Image.fromarray(depth).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        pixels = ToPixels((channels, 2, 2))(image)
    expected = torch.tensor([[0, 51], [204, 255]]) / 255
    torch.testing.assert_close(pixels, expected.expand(channels, 2, 2))


def test_pixels_are_height_by_width() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    pixels = ToPixels((1, 2, 3))(image)
    assert pixels.shape == (1, 2, 3)
    assert torch.equal(pixels.mul(255).round().long()[0], torch.arange(6).reshape(2, 3))
    assert pixels.is_contiguous()


def test_images_are_resized_to_the_input_size() -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (20, 1)))
    pixels = ToPixels((1, 5, 8))(ramp)
    assert pixels.shape == (1, 5, 8)
    assert (pixels[0].diff(dim=1) > 0).all()
    torch.testing.assert_close(pixels[0], pixels[0, :1].expand(5, 8))
    assert (pixels >= 0).all()
    assert (pixels <= 1).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_sources_with_other_than_1_or_3_channels_are_refused(channels: int) -> None:
    with pytest.raises(DataError) as error:
        ToPixels((channels, 8, 8))
    assert str(error.value) == (
        f"the sources take images of {channels} channels; data sets provide 1 (grey) or 3 (colour)."
    )
