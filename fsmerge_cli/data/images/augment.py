"""Augmentation and mixing of images, on pixels in 0..1."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from fsmerge_cli.common.seeding import derive, generator, seeded
from fsmerge_cli.data.images.strong import SHIFT, strong

Augment = Literal["none", "shift", "crop_flip", "paper", "strong"]

SHARED_BY = 8
"""Images per call of a torchvision transform in `new_views`; they share parameters, as one call each is slow."""


def augmentation(name: Augment, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The augmentation `name`, on pixels in 0..1 [..., C, H, W] of `size`; uses torch's global generator.

    shift: translations. crop_flip: crop after reflected padding, horizontal flip. paper: crop, flip
    and one of greyscale, solarisation and blur, as in FS-Merge (arXiv 2410.01483). strong: rotation, scale, shear,
    translation, contrast, brightness, blur and noise, sampled independently for each image.
    """
    if name == "none":
        return _same
    if name == "strong":
        return strong
    transform: Callable[[Tensor], Tensor] = _transforms(name, size)
    return transform


@cache
def _transforms(name: Literal["shift", "crop_flip", "paper"], size: tuple[int, int]) -> Any:
    from torchvision.transforms import v2  # slow to import

    if name == "shift":
        return v2.RandomAffine(degrees=0, translate=(SHIFT, SHIFT))
    if name == "crop_flip":
        padding = [max(1, size[1] // 8), max(1, size[0] // 8)]  # left and right, above and below
        return v2.Compose([v2.RandomCrop(size, padding, padding_mode="reflect"), v2.RandomHorizontalFlip()])
    # One of three with equal probability, as in DeiT III (arXiv 2204.07118).
    one = [v2.Lambda(_grey), v2.RandomSolarize(0.5, p=1.0), v2.GaussianBlur(3, sigma=(0.1, 2.0))]
    crop = v2.RandomCrop(size, padding=4, padding_mode="reflect")
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandomChoice(one)])


def new_views(pixels: Tensor, augment: Augment, mixup: float, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """New augmented and mixed views of one step's batch [n, C, H, W]; they depend only on (seed, step).

    Also the index of the image mixed into each one [n] (its own index: none), in host memory.

    mixup: share of the images that are mixed with another one of the batch; each keeps at least half of itself.
    """
    if augment != "none":
        height, width = pixels.shape[-2:]
        transform = augmentation(augment, (height, width))
        with seeded(derive(seed, "augment", step), pixels):
            size = len(pixels) if augment == "strong" else SHARED_BY
            pixels = torch.cat([transform(part) for part in torch.split(pixels, size)])
    if mixup:
        return mixed(pixels, mixup, generator(seed, "mix", step))
    return pixels, torch.arange(len(pixels))


def mixed(pixels: Tensor, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of the images mixed with others of the batch [n, C, H, W], and the indices of these [n].

    Every image keeps at least half of itself. Half of the mixtures are weighted means (mixup, arXiv 1710.09412),
    the others contain a rectangle of the other image (CutMix, arXiv 1905.04899). No labels are mixed: the sources
    are run on the mixed image.
    """
    n, _, height, width = pixels.shape
    other = torch.randperm(n, generator=random)
    kind, part = torch.rand(n, generator=random), torch.rand(n, generator=random) / 2
    centre = torch.rand(n, 2, generator=random)
    rows, columns = torch.arange(height), torch.arange(width)
    side = part.sqrt()  # of the rectangle, relative to the image; its area is the share of the other image
    inside = [
        ((axis[None] + 0.5) / length - c[:, None]).abs() * 2 <= side[:, None]
        for axis, length, c in zip((rows, columns), (height, width), centre.T)
    ]
    rectangle = (inside[0][:, :, None] & inside[1][:, None, :]).float()
    amount = torch.where((kind < share / 2)[:, None, None], part[:, None, None], rectangle)
    amount = torch.where((kind < share)[:, None, None], amount, torch.zeros(()))[:, None]
    other = torch.where(kind < share, other, torch.arange(n))
    amount, place = (t.to(pixels.device, non_blocking=True) for t in (amount, other))
    return pixels.lerp(pixels[place], amount), other


def _same(pixels: Tensor) -> Tensor:
    return pixels


def _grey(pixels: Tensor) -> Tensor:
    """Mean over the channels, repeated to the same number of channels."""
    return pixels.mean(-3, keepdim=True).expand_as(pixels)
