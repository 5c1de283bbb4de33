"""The unlabelled images that one merge may see: drawn once, the same for every method."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.data.base import DataConfig, ImageSet
from fsmerge_cli.data.images.augment import augmentation
from fsmerge_cli.data.reading import sift, together

READ = 16
"""Images that a worker reads before it hands them over."""

FEWEST_FOR_VALIDATION = 32
"""Images per task under which none is held back and the last step is taken."""


Targets = Literal["own", "all"]

NO_TASK = -1
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
        return (self.task == source) | (self.task == NO_TASK)

    def regroup(self, groups: Sequence[int | None]) -> Images:
        """The images of the tasks that have a group, with the group as their task, and those of no task."""
        gone = NO_TASK - 1
        table = torch.tensor([*(gone if g is None else g for g in groups), NO_TASK])  # the last is that of NOBODY
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
    auxiliary: tuple[ImageSet, DataConfig] | None = None,
    progress: Progress = silent,
    counts: Sequence[int] | None = None,
    tests: Mapping[bytes, str] | None = None,
) -> tuple[Images, list[Loss]]:
    """Draw `images_per_task` images of each task, and their augmented views; also what had to be left out.

    The first images of one permutation are taken, so that a smaller draw is part of a larger one. Instead of an
    image that is left out the next one is taken. auxiliary: images of no task, and the data set that says how many
    of them; none of them is held back. counts: images of each task, where `config` does not say it. tests: digests
    of the test images (see `digest`), none of which is drawn, and what they are called. workers: processes that
    read and augment; the images are the same with any number of them. Raises DataError where an image cannot be
    read, and its set is not lenient.
    """
    counts = [config.count(len(own)) for own in sets] if counts is None else counts
    hold_back = min(counts, default=0) >= FEWEST_FOR_VALIDATION
    picks = [
        _Pick(own, config, seed, index, count, workers) for index, (own, count) in enumerate(zip(sets, counts))
    ]
    if auxiliary is not None:
        own, other = auxiliary
        picks.append(_Pick(own, other, seed, NO_TASK, other.count(len(own)), workers))
    total, seen = sum(pick.count for pick in picks), 0

    def told(count: int) -> None:
        nonlocal seen
        seen += count
        progress(Event("read images", seen, total, images=1))

    banned = dict(tests or {})
    for pick in picks:  # first of all tasks, so that none is trained on for another
        share = pick.config.validation if hold_back and pick.task != NO_TASK else 0
        pick.hold(min(round(share * pick.count), pick.count - 1), banned, told)
    held = {mark: title for pick in picks for mark, title in pick.marks.items()}
    for pick in picks:
        pick.train(banned, held, told)
    if errors := [error for pick in picks if not pick.images.lenient for error in pick.errors]:
        raise together(errors)
    if seen < total:
        told(total - seen)
    images = [part for pick in picks for part in (*pick.held, *pick.originals, *pick.views)]
    if not images:
        empty = torch.empty(0, dtype=torch.long)
        return Images(torch.empty(0), empty, empty, empty), [pick.loss for pick in picks]
    sides = [(len(pick), sum(map(len, pick.held))) for pick in picks]
    task = torch.cat([torch.full((size,), pick.task) for pick, (size, _) in zip(picks, sides)])
    mask = torch.cat([torch.arange(size) < count for size, count in sides])
    drawn = Images(torch.cat(images), task, (~mask).nonzero().flatten(), mask.nonzero().flatten())
    return drawn, [pick.loss for pick in picks]


@dataclass
class Loss:
    """What of a task's images was left out: what they are called, and which image they are the same as.

    task: its index, or NOBODY. unreadable: names. test, validation: pairs (image, its double there).
    """

    task: int
    unreadable: list[str] = field(default_factory=list)
    test: list[tuple[str, str]] = field(default_factory=list)
    validation: list[tuple[str, str]] = field(default_factory=list)


class _Pick:
    """The images of one task while they are drawn: `held` back, trained on (`originals`), their `views`."""

    def __init__(
        self, images: ImageSet, config: DataConfig, seed: int, task: int, count: int, workers: int
    ) -> None:
        self.images, self.config, self.seed, self.task, self.count = images, config, seed, task, count
        self.workers = workers
        self.loss = Loss(task)
        self.held: list[Tensor] = []
        self.originals: list[Tensor] = []
        self.views: list[Tensor] = []
        self.marks: dict[bytes, str] = {}
        self.errors: list[DataError] = []
        order = torch.randperm(len(images), generator=generator(seed, "queries", task))
        self._order = iter(order.tolist())

    def __len__(self) -> int:
        return sum(len(part) for part in (*self.held, *self.originals, *self.views))

    def hold(self, count: int, tests: Mapping[bytes, str], told: Callable[[int], None]) -> None:
        """Take the validation share, without views."""
        for rows, part in self._take(count, replace(self.config, augment="none"), tests, {}, told):
            self.held.append(part[:, 0])
            self.marks |= {digest(pixels): self.images.title(row) for row, pixels in zip(rows, part[:, 0])}

    def train(self, tests: Mapping[bytes, str], held: Mapping[bytes, str], told: Callable[[int], None]) -> None:
        """Take the rest, without what is in the validation share of any task."""
        for _, part in self._take(self.count - sum(map(len, self.held)), self.config, tests, held, told):
            self.originals.append(part[:, 0])
            self.views.append(part[:, 1:].flatten(0, 1))

    def _take(
        self,
        count: int,
        config: DataConfig,
        tests: Mapping[bytes, str],
        held: Mapping[bytes, str],
        told: Callable[[int], None],
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Rows and their pixels [n, 1 + views, C, H, W], until there are `count` or no more."""
        items = _Drawn(self.images, config, self.seed, self.task)
        while count > 0 and (rows := list(itertools.islice(self._order, count))):
            for part in sift(items, rows, READ, self.workers):
                self.errors += part.errors.values()
                self.loss.unreadable += map(self.images.title, part.errors)
                marks = [digest(pixels[0]) for pixels in part.content] if part.numbers else []
                good = []
                for place, (row, mark) in enumerate(zip(part.numbers, marks)):
                    if mark in tests:
                        self.loss.test.append((self.images.title(row), tests[mark]))
                    elif mark in held:
                        self.loss.validation.append((self.images.title(row), held[mark]))
                    else:
                        good.append(place)
                if good:
                    yield [part.numbers[place] for place in good], part.content[good]
                    told(len(good))
                    count -= len(good)


def digest(pixels: Tensor) -> bytes:
    """128 bits of pixels as the sources see them: two images are identical where these are."""
    return hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class _Drawn:
    """Item i: image i and its views, [1 + views, C, H, W]; the same in any process."""

    images: ImageSet
    config: DataConfig
    seed: int
    task: int

    def __getitem__(self, index: int) -> Tensor:
        pixels = self.images[index][0]
        if self.config.augment == "none":
            return pixels[None]
        augment = augmentation(self.config.augment, (pixels.shape[-2], pixels.shape[-1]))
        with torch.random.fork_rng(devices=[]):  # they draw from the global generator
            torch.manual_seed(derive(self.seed, "views", self.task, index))
            return torch.stack([pixels, *(augment(pixels) for _ in range(self.config.views))])
