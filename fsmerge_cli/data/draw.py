"""Sample the unlabelled images that a merge may use, the same for every method."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.inputs import Inputs, content, join, stack
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.data.base import DataConfig, ImageSet
from fsmerge_cli.data.reading import combined_error, read_valid
from fsmerge_cli.data.views import augmentation

READ_BATCH = 16
"""Images that a worker process reads per batch."""

MIN_FOR_VALIDATION = 32
"""With fewer images per task there is no validation share, and the last step is taken."""

Targets = Literal["own", "all"]

NO_TASK = -1
"""Task index of images that belong to no particular task (auxiliary ones, one folder for all tasks): every source
is a teacher on them."""


@dataclass(frozen=True)
class Images:
    """images: pixels [n, C, H, W], or n texts; task: index of the task of each of them [n], or NO_TASK.

    train, validation: rows of `images`; validation is empty under 32 images per task. Augmented views are views
    of training images and lie in train; validation holds only original images.
    """

    images: Inputs
    task: Tensor
    train: Tensor
    validation: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def selected(self, source: int, targets: Targets) -> Tensor:
        """Mask [n] of the images on which one source is a teacher."""
        if targets == "all":
            return torch.ones(len(self), dtype=torch.bool)
        return (self.task == source) | (self.task == NO_TASK)

    def regroup(self, groups: Sequence[int | None]) -> Images:
        """The images of the tasks that have a group, with the group as their task, and the auxiliary images."""
        removed = NO_TASK - 1
        # NO_TASK is -1 and so indexes the last entry.
        table = torch.tensor([*(removed if g is None else g for g in groups), NO_TASK])
        task = table[self.task]
        kept = task != removed
        place = kept.cumsum(0) - 1
        train, validation = (place[rows[kept[rows]]] for rows in (self.train, self.validation))
        return Images(self.images[kept], task[kept], train, validation)


def order(images: ImageSet, seed: int, task: int) -> list[int]:
    """The random order in which the images of a task (its index, or NO_TASK) are taken."""
    found: list[int] = torch.randperm(len(images), generator=generator(seed, "queries", task)).tolist()
    return found


def draw(
    config: DataConfig,
    sets: Sequence[ImageSet],
    seed: int,
    workers: int = 0,
    auxiliary: tuple[ImageSet, DataConfig] | None = None,
    progress: Progress = silent,
    counts: Sequence[int] | None = None,
    tests: Mapping[bytes, str] | None = None,
    mixed: bool = False,
    held_back: Sequence[int] = (),
    held_back_auxiliary: int = 0,
) -> tuple[Images, list[LeftOut]]:
    """Sample `images_per_task` images of each task, with their augmented views; also which images were left out.

    The first images of one random permutation are taken, so that a smaller sample is part of a larger one. An
    image that is left out is replaced by the next one. auxiliary: auxiliary images, and the data set whose options
    set their number; none of them is held out for validation. counts: number of images of each task, overriding
    `config`. tests: digest (see `digest`) -> title of the test images, none of which is sampled. mixed: the
    images of `sets` belong to no particular task. held_back, held_back_auxiliary: number of images at the end of
    the order of each set, and of the auxiliary images, that are not taken. workers: processes that read and
    augment; the result does not depend on their number. Raises DataError if an image cannot be read and its set
    does not skip unreadable images.
    """
    last = held_back or [0] * len(sets)
    counts = [config.count(len(own)) for own in sets] if counts is None else counts
    hold_out = min(counts, default=0) >= MIN_FOR_VALIDATION
    samples = [
        _TaskSample(own, config, seed, NO_TASK if mixed else index, count, workers, last[index])
        for index, (own, count) in enumerate(zip(sets, counts))
    ]
    if auxiliary is not None:
        own, other = auxiliary
        count = min(other.count(len(own)), len(own) - held_back_auxiliary)
        samples.append(_TaskSample(own, other, seed, NO_TASK, count, workers, held_back_auxiliary))
    total, done = sum(sample.count for sample in samples), 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress(Event("read images", done, total, images=1))

    excluded = dict(tests or {})
    for place, sample in enumerate(samples):  # of all tasks first, so that no other task trains on these images
        share = sample.config.validation if hold_out and place < len(sets) else 0
        sample.hold_out(min(round(share * sample.count), sample.count - 1), excluded, report)
    held_out = {key: title for sample in samples for key, title in sample.digests.items()}
    for sample in samples:
        sample.train(excluded, held_out, report)
    if errors := [error for sample in samples if not sample.images.skip_unreadable for error in sample.errors]:
        raise combined_error(errors)
    if done < total:
        report(total - done)
    images = [part for sample in samples for part in (*sample.held_out, *sample.originals, *sample.views)]
    if not images:
        empty = torch.empty(0, dtype=torch.long)
        return Images(torch.empty(0), empty, empty, empty), [sample.left_out for sample in samples]
    sides = [(len(sample), sum(map(len, sample.held_out))) for sample in samples]
    task = torch.cat([torch.full((size,), sample.task) for sample, (size, _) in zip(samples, sides)])
    mask = torch.cat([torch.arange(size) < count for size, count in sides])
    found = Images(join(images), task, (~mask).nonzero().flatten(), mask.nonzero().flatten())
    return found, [sample.left_out for sample in samples]


@dataclass
class LeftOut:
    """The images of one task that were left out.

    task: its index, or NO_TASK. unreadable: titles. test, validation: pairs (title of the image, title of its
    duplicate among the test or validation images).
    """

    task: int
    unreadable: list[str] = field(default_factory=list)
    test: list[tuple[str, str]] = field(default_factory=list)
    validation: list[tuple[str, str]] = field(default_factory=list)


class _TaskSample:
    """The sampled images of one task: `held_out` for validation, `originals` to train on, and their `views`."""

    def __init__(
        self, images: ImageSet, config: DataConfig, seed: int, task: int, count: int, workers: int, last: int
    ) -> None:
        """last: number of images at the end of the order that are not taken."""
        self.images, self.config, self.seed, self.task, self.count = images, config, seed, task, count
        self.workers = workers
        self.left_out = LeftOut(task)
        self.held_out: list[Inputs] = []
        self.originals: list[Inputs] = []
        self.views: list[Inputs] = []
        self.digests: dict[bytes, str] = {}
        self.errors: list[DataError] = []
        self._order = iter(order(images, seed, task)[: len(images) - last])

    def __len__(self) -> int:
        return sum(len(part) for part in (*self.held_out, *self.originals, *self.views))

    def hold_out(self, count: int, tests: Mapping[bytes, str], report: Callable[[int], None]) -> None:
        """Take `count` images for validation, without views."""
        for rows, part in self._take(count, replace(self.config, augment="none"), tests, {}, report):
            self.held_out.append(part[:, 0])
            self.digests |= {digest(pixels): self.images.title(row) for row, pixels in zip(rows, part[:, 0])}

    def train(
        self, tests: Mapping[bytes, str], held_out: Mapping[bytes, str], report: Callable[[int], None]
    ) -> None:
        """Take the rest for training, without the validation images of any task."""
        for _, part in self._take(self.count - sum(map(len, self.held_out)), self.config, tests, held_out, report):
            self.originals.append(part[:, 0])
            self.views.append(part[:, 1:].flatten(0, 1))

    def _take(
        self,
        count: int,
        config: DataConfig,
        tests: Mapping[bytes, str],
        held_out: Mapping[bytes, str],
        report: Callable[[int], None],
    ) -> Iterator[tuple[list[int], Any]]:
        """Rows and their inputs [n, 1 + views, ...], until `count` are taken or none is left."""
        items = _WithViews(self.images, config, self.seed, self.task)
        while count > 0 and (rows := list(itertools.islice(self._order, count))):
            for part in read_valid(items, rows, READ_BATCH, self.workers):
                self.errors += part.errors.values()
                self.left_out.unreadable += map(self.images.title, part.errors)
                digests = [digest(pixels[0]) for pixels in part.content] if part.indices else []
                taken = []
                for place, (row, key) in enumerate(zip(part.indices, digests)):
                    if key in tests:
                        self.left_out.test.append((self.images.title(row), tests[key]))
                    elif key in held_out:
                        self.left_out.validation.append((self.images.title(row), held_out[key]))
                    else:
                        taken.append(place)
                if taken:
                    yield [part.indices[place] for place in taken], part.content[taken]
                    report(len(taken))
                    count -= len(taken)


def digest(item: Inputs) -> bytes:
    """128-bit hash of one preprocessed input; inputs with the same digest count as duplicates."""
    return hashlib.blake2b(content(item), digest_size=16).digest()


@dataclass(frozen=True)
class _WithViews:
    """Item i: input i and its augmented views, [1 + views, ...]; the same in any process."""

    images: ImageSet
    config: DataConfig
    seed: int
    task: int

    def __getitem__(self, index: int) -> Inputs:
        item: Inputs = self.images[index][0]
        if self.config.augment == "none":
            return item[None]
        augment = augmentation(self.config.augment, item)
        with torch.random.fork_rng(devices=[]):  # augmentations use the global generator
            torch.manual_seed(derive(self.seed, "views", self.task, index))
            return stack([item, *(augment(item) for _ in range(self.config.views))])
