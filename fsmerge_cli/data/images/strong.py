"""The strong augmentation: every image of a batch is changed in its own way, in one pass over the batch.

torchvision's transforms draw once per call, so that a batch is either changed in one and the same way or costs a
call for each of its images. Eight calls for a batch of 64 were more than a third of the operations of a training
step of small networks, and on a GPU such a step takes as long as it has operations to start.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TURN, SHEAR = math.radians(12), math.radians(12)
"""Largest rotation and shear."""

SHIFT = 0.125
"""Largest translation, as a share of the image."""

SCALE = (0.8, 1.25)
BRIGHTNESS, CONTRAST = (0.7, 1.3), (0.5, 1.5)
"""Factors."""

BLURRED, WIDTH = 0.25, (0.1, 1.0)
"""Share of the images that are blurred, by a Gaussian of three pixels; its standard deviation in pixels."""

NOISE = 0.1
"""Largest standard deviation of the noise."""


def strong(pixels: Tensor) -> Tensor:
    """Images in 0..1, [..., C, H, W], turned, scaled, sheared, moved, lit, blurred and noisy, each in its own way.

    Reflected where the turned image leaves a gap. Draws from torch's global generators: on the CPU what is done to
    every image, where the pixels are the noise.
    """
    images = pixels.reshape(-1, *pixels.shape[-3:])
    places, values = _drawn(len(images), images.shape[-2], images.shape[-1])
    both = torch.cat([places.flatten(1), values], 1).to(images.device, non_blocking=True)  # one copy
    places, values = both[:, :6].reshape(-1, 2, 3), both[:, 6:].T[..., None, None, None]
    brightness, contrast, side, noise = values
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    images = (images * brightness).clamp(0, 1)
    images = images.mean((1, 2, 3), keepdim=True).lerp(images, contrast)
    images = _blurred(_blurred(images, side).mT, side).mT
    return torch.addcmul(images, torch.randn_like(images), noise).clamp(0, 1).reshape(pixels.shape)


def _drawn(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where every image is read from, [n, 2, 3] for `affine_grid`, and its numbers [n, 4] of light and blur."""
    drawn = torch.rand(n, 10)
    turn, shear, right, down = ((2 * drawn[:, :4] - 1) * torch.tensor([TURN, SHEAR, 2 * SHIFT, 2 * SHIFT])).T
    scale, brightness, contrast, width_of_blur = (
        low + (high - low) * own for own, (low, high) in zip(drawn[:, 4:8].T, (SCALE, BRIGHTNESS, CONTRAST, WIDTH))
    )
    # The inverse of: shear, turn, scale, move. Pixels are squares, but the grid goes from -1 to 1 on both sides.
    cos, sin, tan = turn.cos() / scale, turn.sin() / scale, shear.tan()
    a, b, c, d = cos - sin * tan, sin + cos * tan, -sin, cos
    linear = torch.stack([a, b * height / width, c * width / height, d], 1).reshape(n, 2, 2)
    places = torch.cat([linear, -linear @ torch.stack([right, down], 1)[..., None]], 2)
    side = torch.where(drawn[:, 8] < BLURRED, (-0.5 / width_of_blur.square()).exp(), torch.zeros(()))
    return places, torch.stack([brightness, contrast, side, NOISE * drawn[:, 9]], 1)


def _blurred(images: Tensor, side: Tensor) -> Tensor:
    """A mean over neighbouring columns, of which those at the side weigh `side` [n, 1, 1, 1] to the middle's 1."""
    wide = F.pad(images, (1, 1, 0, 0), mode="replicate")
    return (images + side * (wide[..., :-2] + wide[..., 2:])) / (1 + 2 * side)
