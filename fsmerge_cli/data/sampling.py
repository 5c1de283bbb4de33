"""The images of a run: sampled images and test images, without duplicates between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import torch
from PIL import Image
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.shown import listed
from fsmerge_cli.data import DataConfig, ImageSet, Task, auxiliary_images
from fsmerge_cli.data.base import Split
from fsmerge_cli.data.draw import NO_TASK, READ_BATCH, Images, LeftOut, digest, draw
from fsmerge_cli.data.observed import Observed
from fsmerge_cli.data.reading import combined_error, read_valid

MAX_EXAMPLES = 3
"""Largest number of examples in a note."""

EVERY = Task("", None)
"""The task of images that belong to no particular one."""

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class TestImages:
    """The readable test images of every task (None: none).

    digests: digest of each image -> its title. notes: what the user should know about them. sha256: hash of their
    pixels and labels by task; equal if models were evaluated on the same test images.
    """

    __test__ = False  # not a test class

    sets: Sequence[ImageSet | None]
    digests: dict[bytes, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str = sha256(b"[]").hexdigest()


def build_sets(
    data: DataConfig, split: Split, tasks: Sequence[Task], transform: Transform, mixed: bool | None = None
) -> list[ImageSet | None]:
    """The images of every task in a split; None for a training split that is not sampled. Raises DataError.

    mixed: whether every source sees every image (None: as the data set says for these tasks). Then all tasks have
    the same test images, and the training images are those of `shared_images`.
    """
    if _is_mixed(data, tasks) if mixed is None else mixed:
        return [data.build("test", EVERY, transform) if split == "test" else None] * len(tasks)
    skipped = [
        split == "train" and (data.auxiliary_only or data.of(task.name).images_per_task == 0) for task in tasks
    ]
    return [None if skip else data.build(split, task, transform) for task, skip in zip(tasks, skipped)]


def shared_images(data: DataConfig, tasks: Sequence[Task], transform: Transform) -> ImageSet | None:
    """The images that every source sees; None where each task has its own, or none are sampled."""
    if not _is_mixed(data, tasks) or data.images_per_task == 0:
        return None
    return data.build("train", EVERY, transform)


def _is_mixed(data: DataConfig, tasks: Sequence[Task]) -> bool:
    return data.is_mixed([task.name for task in tasks])


def _count_shared(data: DataConfig, tasks: Sequence[Task], shared: ImageSet) -> int:
    """Number of sampled images that every source sees: as many as if each task had its own."""
    return len(shared) if data.images_per_task == "all" else min(len(tasks) * data.images_per_task, len(shared))


def read_test_images(
    sets: Sequence[ImageSet | None], tasks: Sequence[Task], workers: int = 0, progress: Progress = silent
) -> TestImages:
    """Read every test image once. Raises DataError for the unreadable images of sets that do not skip them."""
    total, done = sum(len(own) for own in sets if own), 0
    digests: dict[bytes, str] = {}
    notes: list[str] = []
    errors: list[DataError] = []
    kept: list[ImageSet | None] = []
    content: list[tuple[str, str]] = []
    for task, own in zip(tasks, sets):
        if own is None:
            kept.append(None)
            continue
        notes += own.notes
        observed = Observed(task, "test images")
        unreadable: set[int] = set()
        content_hash = sha256()
        for part in read_valid(own, range(len(own)), READ_BATCH, workers):
            if part.content:
                observed.pixels(part.content[0])
                observed.labels(part.content[1].tolist())
            for row, pixels, label in zip(part.indices, *(part.content or ((), ()))):
                key, name = digest(pixels), task.labels[label] if task.labels and label >= 0 else None
                digests[key] = own.title(row)
                content_hash.update(repr((key, name)).encode())
            unreadable |= part.errors.keys()
            errors += [] if own.skip_unreadable else part.errors.values()
            done += len(part.indices) + len(part.errors)
            progress(Event("read test images", done, total, images=1))
        notes += observed.notes()
        content.append((task.name, content_hash.hexdigest()))
        if unreadable:
            notes.append(f"task '{task.name}': {_skipped(sorted(map(own.title, unreadable)), 'test image')}")
            readable = [row for row in range(len(own)) if row not in unreadable]
            own = own.only(readable) if readable else None
        kept.append(own)
    if errors:
        raise combined_error(errors)
    return TestImages(kept, digests, tuple(notes), sha256(repr(sorted(content)).encode()).hexdigest())


def prepare_images(
    data: DataConfig | None,
    tasks: Sequence[Task],
    pixels: Callable[[], Transform],
    seed: int,
    workers: int = 0,
    progress: Progress = silent,
) -> tuple[TestImages, Images, list[str]]:
    """The test images of every task, the sampled images, and notes. Raises DataError."""
    if data is None:
        return TestImages([None] * len(tasks)), no_images(), ["no data: nothing was evaluated"]
    transform = pixels()
    tests = read_test_images(build_sets(data, "test", tasks, transform), tasks, workers, progress)
    images, notes = sample_images(data, tasks, transform, tests, seed, workers, progress)
    return tests, images, [*dict.fromkeys([*notes, *tests.notes])]


def sample_images(
    data: DataConfig,
    tasks: Sequence[Task],
    transform: Transform,
    tests: TestImages,
    seed: int,
    workers: int = 0,
    progress: Progress = silent,
) -> tuple[Images, tuple[str, ...]]:
    """The images that a merge may use, without duplicates of test images, and notes. Raises DataError."""
    sets = build_sets(data, "train", tasks, transform)
    others, shared = auxiliary_images(data, transform), shared_images(data, tasks, transform)
    notes = [note for own in [*sets, shared] if own for note in own.notes]
    if others is not None:
        kind = "generated" if others[1].name in ("generated", "none") else f"data={others[1].name}"
        notes.append(f"{others[1].count(len(others[0]))} auxiliary unlabelled images ({kind})")
    notes += [note for task, own in zip(tasks, sets) if own and (note := _too_few(data, task, own))]
    if shared is not None:
        full, counts = [shared], [_count_shared(data, tasks, shared)]
        notes.append(_shared_note(tasks, len(shared), counts[0]))
    else:
        full = [own or ImageSet(0, _no_image, transform, False) for own in sets if not data.auxiliary_only]
        counts = [data.of(task.name).count(len(own)) for task, own in zip(tasks, full)]
    images, left_out = draw(
        data, full, seed, workers, others, progress, counts, tests.digests, mixed=shared is not None
    )
    titles = ["the images"] if shared is not None else [f"task '{task.name}'" for task, _ in zip(tasks, full)]
    titles.append("auxiliary images")
    seen = enumerate(zip(tasks, sets)) if shared is None else [(NO_TASK, (EVERY, shared))]
    for index, (task, own) in seen:
        if own is not None:
            observed = Observed(task, "images")
            observed.pixels(images.images[images.task == index] if len(images) else images.images)
            observed.labels(own.classes or ())
            notes += observed.notes()
    found = [note for title, own in zip(titles, left_out) for note in _left_out(own, title)]
    return images, tuple(dict.fromkeys([*notes, *found]))


def count_images(
    data: DataConfig | None, tasks: Sequence[Task], pixels: Callable[[], Transform]
) -> tuple[list[int], list[int], int, tuple[str, ...]]:
    """Number of sampled images (views included) per task, of test images per task, of auxiliary images; notes.

    No image is read.
    """
    if data is None:
        return [], [], 0, ()
    transform = pixels()
    sets, others = build_sets(data, "train", tasks, transform), auxiliary_images(data, transform)
    counts = [data.of(task.name).count(len(own)) if own else 0 for task, own in zip(tasks, sets)]
    count, other = (others[1].count(len(others[0])), others[1]) if others else (0, data)
    count *= _views(other)
    shared, more = shared_images(data, tasks, transform), list[str]()
    if shared is not None:
        own_count = _count_shared(data, tasks, shared)
        count, more = count + own_count * _views(data), [_shared_note(tasks, len(shared), own_count)]
    tests = build_sets(data, "test", tasks, transform)
    notes = tuple(dict.fromkeys([*(note for own in [*sets, *tests, shared] if own for note in own.notes), *more]))
    sizes = [len(own) if own else 0 for own in tests]
    return [n * _views(data) for n in counts], sizes, count, notes


def no_images() -> Images:
    """An empty set of images."""
    empty = torch.empty(0, dtype=torch.long)
    return Images(torch.empty(0), empty, empty, empty)


def _views(data: DataConfig) -> int:
    return 1 if data.augment == "none" else 1 + data.views


def _too_few(data: DataConfig, task: Task, own: ImageSet) -> str | None:
    requested = data.of(task.name).images_per_task
    if requested == "all" or len(own) >= requested:
        return None
    return (
        f"task '{task.name}' has {len(own)} images, fewer than images_per_task={requested}; all of them are used"
    )


def _shared_note(tasks: Sequence[Task], available: int, count: int) -> str:
    how_many = f"{count} of the {available} images are" if count < available else f"all {available} images are"
    return (
        f"no folder is named after a task ({listed(task.name for task in tasks)}), so {how_many} used for every "
        "one: each source is run on all of them, and their folders are not classes"
    )


def _left_out(images: LeftOut, where: str) -> list[str]:
    """Notes on the images of one task that were left out."""
    found = [_skipped(images.unreadable, "image")] if images.unreadable else []
    for kind, pairs in {"test": images.test, "validation": images.validation}.items():
        if pairs:
            what = "duplicates" if len(pairs) > 1 else "duplicate"
            few = ", ".join(f"{title} is identical to {duplicate}" for title, duplicate in pairs[:MAX_EXAMPLES])
            rest = ", ..." if len(pairs) > MAX_EXAMPLES else ""
            found.append(f"{len(pairs)} {what} of {kind} images left out ({few}{rest})")
    return [f"{where}: {text}" for text in found]


def _skipped(names: Sequence[str], what: str) -> str:
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} skipped, unreadable: {', '.join(names[:10])}{rest}"


def _no_image(index: int) -> tuple[Image.Image, int]:
    raise DataError("there is no image.")
