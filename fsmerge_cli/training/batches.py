"""The batch of every training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fsmerge_cli.common.inputs import join, stack
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.transfer import Feed
from fsmerge_cli.data.views import Augment, at_low_resolution, augmentation, new_views
from fsmerge_cli.training.objective import Batch
from fsmerge_cli.training.teachers import TeacherTargets


@dataclass(frozen=True)
class ViewOptions:
    """How training images become the inputs of a batch.

    augment: see `data.augment`. views: `fresh` (new views at every step) or the number of fixed views of every
    image, in addition to the image itself. mixup: share of mixed images in a batch. low_resolution: share of the
    images of a batch that are seen at half their resolution.
    """

    augment: Augment = "none"
    views: int | Literal["fresh"] = "fresh"
    mixup: float = 0.0
    low_resolution: float = 0.0

    @property
    def fresh(self) -> bool:
        """Whether every step uses new views."""
        return max(self.mixup, self.low_resolution) > 0 or (self.augment != "none" and self.views == "fresh")

    def copies(self, images: Images, seed: int) -> Images:
        """The images, and the fixed views of the training images."""
        if self.augment == "none" or self.views == "fresh":
            return images
        transform = augmentation(self.augment, images.images[0])
        copies = []
        for row in images.train.tolist():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "copies", row))
                copies += [transform(images.images[row]) for _ in range(self.views)]
        task = images.task[images.train].repeat_interleave(self.views)
        new = torch.arange(len(images), len(images) + len(task))
        return replace(
            images,
            images=join([images.images, stack(copies)]),
            task=torch.cat([images.task, task]),
            train=torch.cat([images.train, new]),
        )


@dataclass
class Order:
    """The images of every step: consecutive slices of one seeded permutation per epoch.

    Depends only on (seed, step). With fewer images than the batch size every step takes all of them; where the
    batch is `filled`, it repeats them.
    """

    rows: Tensor
    batch_size: int
    seed: int
    filled: bool = False
    _epochs: dict[int, Tensor] = field(default_factory=dict)

    def batch(self, step: int) -> Tensor:
        """Rows of the images of one step."""
        n = len(self.rows)
        if n <= self.batch_size and not self.filled:
            return self.rows
        start = step * self.batch_size
        epochs = range(start // n, (start + self.batch_size - 1) // n + 1)
        self._epochs = {e: self._epochs[e] if e in self._epochs else self._permutation(e) for e in epochs}
        joined = torch.cat([self._epochs[e] for e in epochs])
        return self.rows[joined[start - epochs[0] * n :][: self.batch_size]]

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.rows), generator=generator(self.seed, "order", epoch))


@dataclass(frozen=True)
class Batches:
    """The batches of one training; the same on every process and after an interruption."""

    order: Order
    view_options: ViewOptions
    pixels: Feed
    targets: Sequence[TeacherTargets]
    seed: int

    @property
    def size(self) -> int:
        """Images per step."""
        n = len(self.order.rows)
        return self.order.batch_size if self.order.filled else min(self.order.batch_size, n)

    def batch(self, step: int) -> Batch:
        """Inputs and targets of one step."""
        rows = self.order.batch(step)
        if not self.view_options.fresh:
            return Batch.of(self.pixels, self.targets, rows)
        view_options = self.view_options
        augment = view_options.augment if view_options.views == "fresh" else "none"  # fixed views stay as they are
        new, other = new_views(self.pixels[rows], augment, view_options.mixup, self.seed, step)
        if view_options.low_resolution:
            new = at_low_resolution(new, view_options.low_resolution, self.seed, step)
        return Batch.live(new, self.targets, rows, rows[other])  # a mixed image has the task of its larger part
