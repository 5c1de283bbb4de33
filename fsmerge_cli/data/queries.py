"""The unlabelled images that one merge may see: drawn once, the same for every method."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsmerge_cli.data.base import DataConfig, ImageSet
from fsmerge_cli.data.reading import read
from fsmerge_cli.progress import Event, Progress, silent
from fsmerge_cli.seeding import derive, generator

READ = 16
"""Images that a worker reads before it hands them over."""

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


def draw(
    config: DataConfig, sets: Sequence[ImageSet], seed: int, workers: int = 0, progress: Progress = silent
) -> Images:
    """Draw `images_per_task` images of each task, and their augmented views.

    The first images of one permutation are taken, so that a smaller draw is part of a larger one. workers:
    processes that read and augment; the images are the same with any number of them. Raises DataError where
    an image cannot be read.
    """
    wanted = [len(own) if config.images_per_task == "all" else config.images_per_task for own in sets]
    counts = [min(asked, len(own)) for asked, own in zip(wanted, sets)]
    hold_back = min(counts, default=0) >= FEWEST_FOR_VALIDATION
    images: list[Tensor] = []
    task: list[int] = []
    held: list[bool] = []
    seen = 0
    for index, (own, count) in enumerate(zip(sets, counts)):
        order = torch.randperm(len(own), generator=generator(seed, "queries", index)).tolist()[:count]
        kept = min(round(config.validation * count), count - 1) if hold_back else 0
        items = _Drawn(own, config, seed, index, frozenset(order[:kept]))
        parts = []
        for part in itertools.chain(
            read(items, order[:kept], READ, workers), read(items, order[kept:], READ, workers)
        ):
            parts.append(part)
            seen += len(part)
            progress(Event("read images", seen, sum(counts), images=1))
        originals = [part[:, 0] for part in parts]
        views = [part[:, 1:].flatten(0, 1) for part in parts]
        added = sum(map(len, views))
        images += [*originals, *views]
        task += [index] * (count + added)
        held += [True] * kept + [False] * (count - kept + added)
    if not images:
        return Images(torch.empty(0), torch.empty(0, dtype=torch.long), *([torch.empty(0, dtype=torch.long)] * 2))
    mask = torch.tensor(held)
    return Images(torch.cat(images), torch.tensor(task), (~mask).nonzero().flatten(), mask.nonzero().flatten())


@dataclass(frozen=True)
class _Drawn:
    """Item i: image i and, where it is trained on, its views, [1 + views, C, H, W]; the same in any process."""

    images: ImageSet
    config: DataConfig
    seed: int
    task: int
    held: frozenset[int]

    def __getitem__(self, index: int) -> Tensor:
        pixels = self.images[index][0]
        if index in self.held or self.config.augment == "none":
            return pixels[None]
        augment = augmentation(self.config.augment)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(derive(self.seed, "views", self.task, index))
            return torch.stack([pixels, *(augment(pixels) for _ in range(self.config.views))])


def augmentation(name: str) -> Callable[[Tensor], Tensor]:
    """The transform called `name`, on pixels in 0..1."""
    from torchvision.transforms import v2  # slow to import, so only where it is used

    transforms: dict[str, Callable[[Tensor], Tensor]] = {
        "shift": v2.RandomAffine(degrees=0, translate=(SHIFT, SHIFT)),
    }
    return transforms[name]
