"""Images that measure a merge where a task has no test images: held back from it, or its own where they are few.

A task's images are taken in one random order. The merge takes the first ones, and the last ones are held back, so
that nothing changes for the merge where there are more images than it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from PIL import Image

from fsmerge_cli.common.shown import listed
from fsmerge_cli.data.base import DataConfig, ImageSet, Task
from fsmerge_cli.data.draw import NO_TASK, order
from fsmerge_cli.data.pools import Pools

MIN_IMAGES = 16
"""With fewer images of a task none is held back: the merge needs them."""

MAX_IMAGES = 200
"""Largest number of images that are held back per task."""

Kind = Literal["test", "held_back", "merge"]
"""test: test images. held_back: images that the merge did not use. merge: images that it used."""


@dataclass(frozen=True)
class Measured:
    """The images that measure one task.

    images: None if there are none. count: number of images at the end of the random order that the merge may not
    take. of: whose they are: of the task, of all tasks (one folder for all), or auxiliary ones, of no task.
    """

    images: ImageSet | None
    kind: Kind = "test"
    count: int = 0
    of: Literal["task", "all", "auxiliary"] = "task"


@dataclass(frozen=True)
class HeldCounts:
    """Numbers of images at the end of the random order that the merge may not take, as in `Pools`."""

    own: list[int]
    shared: int
    auxiliary: int


def is_generated(data: DataConfig) -> bool:
    """Whether auxiliary images of this data set are generated, so that there are always more."""
    return data.name in ("generated", "none")


def hold_back(pools: Pools, tests: Sequence[ImageSet | None], seed: int) -> list[Measured]:
    """The images that measure each task.

    These are its test images; without them the last of its own images or of those for all tasks, or of the
    auxiliary images where it has no others. tests: the test images of each task (None: none).
    """
    data, found = pools.data, list[Measured]()
    other: Measured | None = None  # the same for all tasks without images of their own
    for index, (task, test, own) in enumerate(zip(pools.tasks, tests, pools.own)):
        if test is not None:
            found.append(Measured(test, of="all" if pools.shared is not None else "task"))
        elif own is not None:
            taken = data.of(task.name).count(len(own))
            found.append(_last(own, taken, data.held_back, order(own, seed, index)))
        else:
            other = other or _of_others(pools, seed)
            found.append(other)
    return found


def _of_others(pools: Pools, seed: int) -> Measured:
    share = pools.data.held_back
    if pools.shared is not None:
        own = pools.shared
        return replace(_last(own, pools.count_shared(), share, order(own, seed, NO_TASK)), of="all")
    if pools.auxiliary is None:
        return Measured(None)
    own, config = without_labels(pools.auxiliary[0]), pools.auxiliary[1]  # the labels are not those of the tasks
    size = len(own)
    if is_generated(config) and share:
        count = min(MAX_IMAGES, max(MIN_IMAGES, round(share * size)))
        more = replace(own, size=size + count, classes=None).only(range(size, size + count))
        return Measured(more, "held_back", of="auxiliary")
    return replace(_last(own, config.count(size), share, order(own, seed, NO_TASK)), of="auxiliary")


def _last(own: ImageSet, taken: int, share: float, rows: Sequence[int]) -> Measured:
    """The last images of the order `rows`, of whose first ones the merge would take `taken`."""
    size = len(own)
    if share and size >= MIN_IMAGES:
        count = min(MAX_IMAGES, max(1, round(share * size), size - taken))
        return Measured(own.only(sorted(rows[size - count :])), "held_back", count)
    # Labels would give the accuracy on images that were merged; agreement is enough.
    return Measured(without_labels(own.only(sorted(rows[:taken]))) if taken else None, "merge")


def held_counts(measured: Sequence[Measured], tasks: int) -> HeldCounts:
    """How many images the merge may not take; of no task if nothing is `measured`."""
    own = [m.count if m.of == "task" else 0 for m in measured] or [0] * tasks
    shared, auxiliary = (max((m.count for m in measured if m.of == of), default=0) for of in ("all", "auxiliary"))
    return HeldCounts(own, shared, auxiliary)


def without_labels(images: ImageSet) -> ImageSet:
    """The same images, with no class."""
    read = partial(_unlabelled, images.read)
    tags = None if images.tags is None else partial(_untagged, images.tags)
    return replace(images, read=read, classes=[-1] * len(images), labelled=False, tags=tags, values=None)


def _unlabelled(read: Callable[[int], tuple[Image.Image, int]], index: int) -> tuple[Image.Image, int]:
    return read(index)[0], -1


def _untagged(tags: Callable[[int], list[int]], index: int) -> list[int]:
    return [-1] * len(tags(index))


def held_back_notes(data: DataConfig, measured: Sequence[Measured], tasks: Sequence[Task]) -> list[str]:
    """What the user should know about the images that measure the merge."""
    held: dict[str, int] = {}
    reused: dict[str, None] = {}
    for task, own in zip(tasks, measured):
        name = {"task": f"'{task.name}'", "all": "all tasks", "auxiliary": "the auxiliary images"}[own.of]
        if own.images is not None and own.kind == "held_back":
            held[name] = len(own.images)
        elif own.images is not None and own.kind == "merge":
            reused[name] = None
    share, notes = f"data.held_back={data.held_back:g}", []
    if held:
        counts = listed(f"{size} of {name}" for name, size in held.items())
        notes.append(
            f"there are no test images, so images are held back from the merge and measure it: {counts} ({share})"
        )
    if reused:
        why = f"fewer than {MIN_IMAGES} images" if data.held_back else share
        notes.append(
            f"nothing is held back of {listed(reused)} ({why}): agreement with the sources is measured on images "
            "that the merge used, so it is optimistic"
        )
    return notes
