"""The images that a merge may use: those of each task, those that every source sees, and auxiliary ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.shown import listed
from fsmerge_cli.data import DataConfig, ImageSet, Task, auxiliary_images
from fsmerge_cli.data.base import Split, Transform

EVERY = Task("", None)
"""The task of images that belong to no particular one."""


def build_sets(
    data: DataConfig, split: Split, tasks: Sequence[Task], transform: Transform, mixed: bool | None = None
) -> list[ImageSet | None]:
    """The images of every task in a split; None for a training split that is not sampled. Raises DataError.

    mixed: whether every source sees every image (None: as the data set says for these tasks). Then all tasks have
    the same test images, and the training images are `Pools.shared`.
    """
    if _is_mixed(data, tasks) if mixed is None else mixed:
        return [data.build("test", EVERY, transform) if split == "test" else None] * len(tasks)
    skipped = [
        split == "train" and (data.auxiliary_only or data.of(task.name).images_per_task == 0) for task in tasks
    ]
    return [None if skip else data.build(split, task, transform) for task, skip in zip(tasks, skipped)]


def _is_mixed(data: DataConfig, tasks: Sequence[Task]) -> bool:
    return not all(task.own_data for task in tasks) and data.is_mixed([task.name for task in tasks])


@dataclass(frozen=True)
class Pools:
    """The images that a merge may sample, all of them.

    own: of each task (None: none). shared: those that every source sees (None: each task has its own). auxiliary:
    with the data set whose options set how many are sampled.
    """

    data: DataConfig
    tasks: Sequence[Task]
    own: Sequence[ImageSet | None]
    shared: ImageSet | None
    auxiliary: tuple[ImageSet, DataConfig] | None

    @classmethod
    def of(cls, data: DataConfig, tasks: Sequence[Task], transform: Transform) -> Pools:
        """The training images of a data set. Raises DataError."""
        own, auxiliary = build_sets(data, "train", tasks, transform), auxiliary_images(data, transform)
        mixed = _is_mixed(data, tasks) and data.images_per_task != 0
        return cls(data, tasks, own, data.build("train", EVERY, transform) if mixed else None, auxiliary)

    def sets(self, transform: Transform) -> list[ImageSet]:
        """Those that are sampled beside the auxiliary images: one per task, or one for all."""
        if self.shared is not None:
            return [self.shared]
        empty = ImageSet(0, _no_image, transform, labelled=False)
        return [] if self.data.auxiliary_only else [own or empty for own in self.own]

    def count(self, index: int, held: int = 0) -> int:
        """The number of images of a task that are sampled, where `held` of them are held back."""
        own = self.own[index]
        return 0 if own is None else min(self.data.of(self.tasks[index].name).count(len(own)), len(own) - held)

    def count_shared(self, held: int = 0) -> int:
        """The number of sampled images that every source sees: as many as if each task had its own."""
        size, wanted = len(self.shared or ()), self.data.images_per_task
        return min(size - held, size if wanted == "all" else len(self.tasks) * wanted)

    def count_auxiliary(self, held: int = 0) -> int:
        """The number of auxiliary images that are sampled."""
        if self.auxiliary is None:
            return 0
        images, config = self.auxiliary
        return min(config.count(len(images)), len(images) - held)

    def shared_note(self, held: int) -> str:
        """What it means that every source sees every image."""
        size, count = len(self.shared or ()), self.count_shared(held)
        how_many = f"{count} of the {size} images are" if count < size else f"all {size} images are"
        tasks = listed(task.name for task in self.tasks)
        return (
            f"{self.data.why_mixed} ({tasks}), so {how_many} used for every one: each source is run on all of them"
            f"{self.data.mixed_meaning}"
        )


def _no_image(index: int) -> tuple[Image.Image, int]:
    raise DataError("there is no image.")
