"""The unlabelled images that one merge may see: drawn once, the same for every method."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fsmerge_cli.data.augment import augmentation
from fsmerge_cli.data.base import DataConfig, ImageSet
from fsmerge_cli.data.reading import read
from fsmerge_cli.progress import Event, Progress, silent
from fsmerge_cli.seeding import derive, generator

READ = 16
"""Images that a worker reads before it hands them over."""

FEWEST_FOR_VALIDATION = 32
"""Images per task under which none is held back and the last step is taken."""


Targets = Literal["own", "all"]

NOBODY = -1
"""Task of an image that belongs to none: every source is asked."""


@dataclass(frozen=True)
class Images:
    """images: pixels [n, C, H, W]; task: index of the task each image belongs to [n], or NOBODY.

    train, validation: rows of `images`; validation is empty under 32 images per task. A view of an image is
    always on the same side as the image itself, and validation holds originals only.
    """

    images: Tensor
    task: Tensor
    train: Tensor
    validation: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def asked(self, source: int, targets: Targets) -> Tensor:
        """Which images one source is compared on, [n]."""
        if targets == "all":
            return torch.ones(len(self), dtype=torch.bool)
        return (self.task == source) | (self.task == NOBODY)

    def regroup(self, groups: Sequence[int | None]) -> Images:
        """The images of the tasks that have a group, with the group as their task, and those of no task."""
        gone = NOBODY - 1
        table = torch.tensor([*(gone if g is None else g for g in groups), NOBODY])  # the last is that of NOBODY
        task = table[self.task]
        kept = task != gone
        place = kept.cumsum(0) - 1
        train, validation = (place[rows[kept[rows]]] for rows in (self.train, self.validation))
        return Images(self.images[kept], task[kept], train, validation)


def draw(
    config: DataConfig,
    sets: Sequence[ImageSet],
    seed: int,
    workers: int = 0,
    unrelated: tuple[ImageSet, DataConfig] | None = None,
    progress: Progress = silent,
) -> Images:
    """Draw `images_per_task` images of each task, and their augmented views.

    The first images of one permutation are taken, so that a smaller draw is part of a larger one. unrelated:
    images of no task, and the data set that says how many of them; none of them is held back. workers: processes
    that read and augment; the images are the same with any number of them. Raises DataError where an image
    cannot be read.
    """
    counts = [config.count(len(own)) for own in sets]
    hold_back = min(counts, default=0) >= FEWEST_FOR_VALIDATION
    images: list[Tensor] = []
    task: list[int] = []
    held: list[bool] = []
    seen = 0
    drawn = [(index, own, count, config) for index, (own, count) in enumerate(zip(sets, counts))]
    if unrelated is not None:
        drawn.append((NOBODY, unrelated[0], unrelated[1].count(len(unrelated[0])), unrelated[1]))
    total = sum(count for _, _, count, _ in drawn)
    for index, own, count, config in drawn:
        order = torch.randperm(len(own), generator=generator(seed, "queries", index)).tolist()[:count]
        kept = min(round(config.validation * count), count - 1) if hold_back and index != NOBODY else 0
        items = _Drawn(own, config, seed, index, frozenset(order[:kept]))
        parts = []
        for part in itertools.chain(
            read(items, order[:kept], READ, workers), read(items, order[kept:], READ, workers)
        ):
            parts.append(part)
            seen += len(part)
            progress(Event("read images", seen, total, images=1))
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
        augment = augmentation(self.config.augment, (pixels.shape[-2], pixels.shape[-1]))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(derive(self.seed, "views", self.task, index))
            return torch.stack([pixels, *(augment(pixels) for _ in range(self.config.views))])
