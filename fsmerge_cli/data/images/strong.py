"""The strong augmentation: different random parameters for each image, in one pass over the batch.

torchvision's transforms sample their parameters once per call, so that all images of a call get the same
parameters. Eight calls for a batch of 64 were more than a third of the operations of a training step of small
networks, and on a GPU the time of such a step is dominated by the number of kernel launches.
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
"""Ranges of factors."""

BLURRED, WIDTH = 0.25, (0.1, 1.0)
"""Share of the images that are blurred, by a Gaussian of three pixels; range of its std in pixels."""

NOISE = 0.1
"""Largest standard deviation of the noise."""


def strong(pixels: Tensor) -> Tensor:
    """Change images in 0..1 [..., C, H, W]: rotation, scale, shear, shift, contrast, brightness, blur and noise.

    Each image has its own parameters. Gaps at the border are filled by reflection. Uses torch's global generators:
    that of the CPU for the parameters, that of the pixels' device for the noise.
    """
    images = pixels.reshape(-1, *pixels.shape[-3:])
    places, values = _parameters(len(images), images.shape[-2], images.shape[-1])
    both = torch.cat([places.flatten(1), values], 1).to(images.device, non_blocking=True)  # one copy
    places, values = both[:, :6].reshape(-1, 2, 3), both[:, 6:].T[..., None, None, None]
    brightness, contrast, side, noise = values
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    images = (images * brightness).clamp(0, 1)
    images = images.mean((1, 2, 3), keepdim=True).lerp(images, contrast)
    images = _blurred(_blurred(images, side).mT, side).mT
    return torch.addcmul(images, torch.randn_like(images), noise).clamp(0, 1).reshape(pixels.shape)


def _parameters(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Affine maps [n, 2, 3] for `affine_grid`; brightness, contrast, blur and noise of every image [n, 4]."""
    sampled = torch.rand(n, 10)
    turn, shear, right, down = ((2 * sampled[:, :4] - 1) * torch.tensor([TURN, SHEAR, 2 * SHIFT, 2 * SHIFT])).T
    scale, brightness, contrast, width_of_blur = (
        low + (high - low) * own
        for own, (low, high) in zip(sampled[:, 4:8].T, (SCALE, BRIGHTNESS, CONTRAST, WIDTH))
    )
    # The inverse of: shear, rotate, scale, shift. The grid goes from -1 to 1 on both axes, so scale by H / W.
    cos, sin, tan = turn.cos() / scale, turn.sin() / scale, shear.tan()
    a, b, c, d = cos - sin * tan, sin + cos * tan, -sin, cos
    linear = torch.stack([a, b * height / width, c * width / height, d], 1).reshape(n, 2, 2)
    places = torch.cat([linear, -linear @ torch.stack([right, down], 1)[..., None]], 2)
    side = torch.where(sampled[:, 8] < BLURRED, (-0.5 / width_of_blur.square()).exp(), torch.zeros(()))
    return places, torch.stack([brightness, contrast, side, NOISE * sampled[:, 9]], 1)


def _blurred(images: Tensor, side: Tensor) -> Tensor:
    """Weighted mean over three neighbouring columns, with weights `side` [n, 1, 1, 1], 1 and `side`."""
    wide = F.pad(images, (1, 1, 0, 0), mode="replicate")
    return (images + side * (wide[..., :-2] + wide[..., 2:])) / (1 + 2 * side)
