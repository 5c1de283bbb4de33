"""What the sources are asked at each step of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.images.augment import Augment, augmentation, renewed
from fsmerge_cli.data.transfer import Feed
from fsmerge_cli.training.objective import Batch
from fsmerge_cli.training.teachers import TeacherTargets


@dataclass(frozen=True)
class ViewOptions:
    """How images become questions.

    augment: see `data.augment`. views: `fresh` (new ones at every step) or so many fixed copies of every image,
    beside the image itself. mix: share of mixtures in every batch.
    """

    augment: Augment = "none"
    views: int | Literal["fresh"] = "fresh"
    mixup: float = 0.0

    @property
    def fresh(self) -> bool:
        """Whether every step asks something new."""
        return self.mixup > 0 or (self.augment != "none" and self.views == "fresh")

    def copies(self, images: Images, seed: int) -> Images:
        """The images and the fixed copies of those that are trained on."""
        if self.augment == "none" or self.views == "fresh":
            return images
        transform = augmentation(self.augment, (images.images.shape[-2], images.images.shape[-1]))
        copies = []
        for row in images.train.tolist():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "copies", row))
                copies += [transform(images.images[row]) for _ in range(self.views)]
        task = images.task[images.train].repeat_interleave(self.views)
        new = torch.arange(len(images), len(images) + len(task))
        return replace(
            images,
            images=torch.cat([images.images, torch.stack(copies)]),
            task=torch.cat([images.task, task]),
            train=torch.cat([images.train, new]),
        )


@dataclass
class Order:
    """Which images make up step s: consecutive pieces of one seeded permutation per pass over the data.

    Depends on (seed, step) alone. Fewer images than the batch: every step takes all of them, or, to be `filled`,
    repeats them.
    """

    rows: Tensor
    batch_size: int
    seed: int
    filled: bool = False
    _passes: dict[int, Tensor] = field(default_factory=dict)

    def batch(self, step: int) -> Tensor:
        """Rows of the images of one step."""
        n = len(self.rows)
        if n <= self.batch_size and not self.filled:
            return self.rows
        start = step * self.batch_size
        wanted = range(start, start + self.batch_size)
        passes = sorted({position // n for position in wanted})
        self._passes = {p: self._passes[p] if p in self._passes else self._permutation(p) for p in passes}
        both = torch.cat([self._passes[p] for p in passes])
        return self.rows[both[start - passes[0] * n :][: self.batch_size]]

    def _permutation(self, number: int) -> Tensor:
        return torch.randperm(len(self.rows), generator=generator(self.seed, "order", number))


@dataclass(frozen=True)
class Batches:
    """The batches of one training; the same on every process, and after every interruption."""

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
        """The questions of one step."""
        rows = self.order.batch(step)
        if not self.view_options.fresh:
            return Batch.of(self.pixels, self.targets, rows)
        view_options = self.view_options
        anew = view_options.augment if view_options.views == "fresh" else "none"  # fixed copies stay what they are
        new, other = renewed(self.pixels[rows], anew, view_options.mixup, self.seed, step)
        return Batch.asked(new, self.targets, rows, rows[other])  # a mixture is its larger part's task's
