"""The unlabelled images that one merge may see: drawn once, the same for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsmerge_cli.data.base import DataConfig, ImageSet
from fsmerge_cli.seeding import derive, generator

FEWEST_FOR_VALIDATION = 32
"""Images per task under which none is held back and the last step is taken."""

SHIFT = 0.125
"""Largest translation of augment=shift, as a share of the image."""


@dataclass(frozen=True)
class Images:
    """images: pixels [n, C, H, W]; task: index of the task each image belongs to [n].

    train, validation: rows of `images`; validation is empty under 32 images per task. A view of an image is
    always on the same side as the image itself, and validation holds originals only.
    """

    images: Tensor
    task: Tensor
    train: Tensor
    validation: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def regroup(self, groups: Sequence[int | None]) -> Images:
        """The images of the tasks that have a group, with the group as their task."""
        table = torch.tensor([-1 if g is None else g for g in groups])
        task = table[self.task]
        kept = task >= 0
        place = kept.cumsum(0) - 1
        train, validation = (place[rows[kept[rows]]] for rows in (self.train, self.validation))
        return Images(self.images[kept], task[kept], train, validation)


def draw(config: DataConfig, sets: Sequence[ImageSet], seed: int) -> Images:
    """Draw `images_per_task` images of each task, and their augmented views.

    The first images of one permutation are taken, so that a smaller draw is part of a larger one.
    """
    wanted = [len(own) if config.images_per_task == "all" else config.images_per_task for own in sets]
    counts = [min(asked, len(own)) for asked, own in zip(wanted, sets)]
    hold_back = min(counts, default=0) >= FEWEST_FOR_VALIDATION
    images: list[Tensor] = []
    task: list[int] = []
    held: list[bool] = []
    for index, (own, count) in enumerate(zip(sets, counts)):
        order = torch.randperm(len(own), generator=generator(seed, "queries", index)).tolist()[:count]
        kept = min(round(config.validation * count), count - 1) if hold_back else 0
        originals = [own[i][0] for i in order]
        views = [
            view
            for i, pixels in zip(order[kept:], originals[kept:])
            for view in _views(config, pixels, derive(seed, "views", index, i))
        ]
        images += [*originals, *views]
        task += [index] * (count + len(views))
        held += [True] * kept + [False] * (count - kept + len(views))
    if not images:
        return Images(torch.empty(0), torch.empty(0, dtype=torch.long), *([torch.empty(0, dtype=torch.long)] * 2))
    mask = torch.tensor(held)
    return Images(torch.stack(images), torch.tensor(task), (~mask).nonzero().flatten(), mask.nonzero().flatten())


def _views(config: DataConfig, pixels: Tensor, seed: int) -> list[Tensor]:
    if config.augment == "none":
        return []
    augment = augmentation(config.augment)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(seed)
        return [augment(pixels) for _ in range(config.views)]


def augmentation(name: str) -> Callable[[Tensor], Tensor]:
    """The transform called `name`, on pixels in 0..1."""
    from torchvision.transforms import v2  # slow to import, so only where it is used

    transforms: dict[str, Callable[[Tensor], Tensor]] = {
        "shift": v2.RandomAffine(degrees=0, translate=(SHIFT, SHIFT)),
    }
    return transforms[name]
