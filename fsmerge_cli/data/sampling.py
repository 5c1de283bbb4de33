"""The images of a run: sampled images and test images, without duplicates between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import torch

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.wording import Kind
from fsmerge_cli.data import DataConfig, ImageSet, Task
from fsmerge_cli.data.base import Transform
from fsmerge_cli.data.draw import NO_TASK, READ_BATCH, Images, LeftOut, digest, draw
from fsmerge_cli.data.held_back import Measured, held_back_notes, held_counts, hold_back, is_generated
from fsmerge_cli.data.observed import Observed
from fsmerge_cli.data.pools import EVERY, Pools, build_sets
from fsmerge_cli.data.reading import combined_error, read_valid

MAX_EXAMPLES = 3
"""Largest number of examples in a note."""


@dataclass(frozen=True)
class TestImages:
    """The readable test images of every task (None: none).

    digests: digest of each image -> its title. notes: what the user should know about them. sha256: hash of their
    pixels and labels by task; equal if models were evaluated on the same test images. measured: where the images
    of each task come from.
    """

    __test__ = False  # not a test class

    sets: Sequence[ImageSet | None]
    digests: dict[bytes, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str = sha256(b"[]").hexdigest()
    measured: Sequence[Measured] = ()


def read_test_images(
    sets: Sequence[ImageSet | None],
    tasks: Sequence[Task],
    workers: int = 0,
    progress: Progress = silent,
    measured: Sequence[Measured] | None = None,
) -> TestImages:
    """Read every test image once. Raises DataError for the unreadable images of sets that do not skip them.

    measured: the same images, with where they come from (None: all are test images). Those that the merge uses as
    well are not among the digests.
    """
    given = measured or [Measured(own) for own in sets]
    total, done = sum(len(own) for own in sets if own), 0
    digests: dict[bytes, str] = {}
    notes: list[str] = []
    errors: list[DataError] = []
    kept: list[ImageSet | None] = []
    content: list[tuple[str, str]] = []
    for task, own, origin in zip(tasks, sets, given):
        if own is None:
            kept.append(None)
            continue
        before = [*notes]
        notes += own.notes
        observed = Observed(task, "test images")
        unreadable: set[int] = set()
        content_hash = sha256()
        for part in read_valid(own, range(len(own)), READ_BATCH, workers):
            if part.content:
                observed.inputs(part.content[0])
                observed.labels(part.content[1].tolist())
            for row, pixels, label in zip(part.indices, *(part.content or ((), ()))):
                key, name = digest(pixels), task.labels[label] if task.labels and label >= 0 else None
                if origin.kind != "merge":
                    digests[key] = own.title(row)
                content_hash.update(repr((key, name)).encode())
                content_hash.update(repr(own.tags(row)).encode() if own.tags else b"")
                content_hash.update(repr(own.values[row]).encode() if own.values else b"")
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
        if origin.kind == "merge":  # the notes on these images are those of the merge
            notes = before
        kept.append(own)
    if errors:
        raise combined_error(errors)
    given = [replace(origin, images=own) for origin, own in zip(given, kept)]
    return TestImages(kept, digests, tuple(notes), sha256(repr(sorted(content)).encode()).hexdigest(), given)


def prepare_images(
    data: DataConfig | None,
    tasks: Sequence[Task],
    pixels: Callable[[], Transform],
    seed: int,
    workers: int = 0,
    progress: Progress = silent,
    needed: bool = False,
) -> tuple[TestImages, Images, list[str]]:
    """The images that measure every task, the sampled images, and notes. Raises DataError.

    Where a task has no test images, some of its own are held back, see `held_back`. needed: a task whose images
    all measure it is refused.
    """
    if data is None:
        return TestImages([None] * len(tasks)), no_images(), ["no data: nothing was evaluated"]
    transform = pixels()
    tested = build_sets(data, "test", tasks, transform)
    pools = Pools.of(data, tasks, transform)
    measured = hold_back(pools, tested, seed)
    tests = read_test_images([own.images for own in measured], tasks, workers, progress, measured)
    images, notes = _sample(pools, transform, tests, seed, workers, progress, needed)
    return tests, images, [*dict.fromkeys([*notes, *tests.notes, *held_back_notes(data, tests.measured, tasks)])]


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
    return _sample(Pools.of(data, tasks, transform), transform, tests, seed, workers, progress)


def _sample(
    pools: Pools,
    transform: Transform,
    tests: TestImages,
    seed: int,
    workers: int,
    progress: Progress,
    needed: bool = False,
) -> tuple[Images, tuple[str, ...]]:
    tasks, held, sets = pools.tasks, held_counts(tests.measured, len(pools.tasks)), pools.sets(transform)
    notes = [note for own in [*pools.own, pools.shared] if own for note in own.notes]
    if pools.auxiliary is not None:
        other = pools.auxiliary[1]
        kind = "generated" if is_generated(other) else f"data={other.name}"
        notes.append(f"{pools.count_auxiliary(held.auxiliary)} auxiliary unlabelled images ({kind})")
    notes += [note for index in range(len(tasks)) if (note := _too_few(pools, index, held.own[index]))]
    if pools.shared is not None:
        counts, last, titles = [pools.count_shared(held.shared)], [held.shared], ["the images"]
        notes.append(pools.shared_note(held.shared))
    else:
        counts, last = [pools.count(i, held.own[i]) for i, _ in enumerate(sets)], held.own[: len(sets)]
        titles = [f"task '{task.name}'" for task, _ in zip(tasks, sets)]
    images, left_out = draw(
        pools.data, sets, seed, workers, pools.auxiliary, progress, counts, tests.digests,
        pools.shared is not None, last, held.auxiliary,
    )  # fmt: skip
    what = "held-back" if any(own.kind == "held_back" for own in tests.measured) else "test"
    for title, found in zip(titles, left_out) if needed else ():
        _require_any(found, images, title, what, "text" if pools.data.kind == "text" else "image")
    seen = enumerate(zip(tasks, pools.own)) if pools.shared is None else [(NO_TASK, (EVERY, pools.shared))]
    for index, (task, own) in seen:
        if own is not None:
            observed = Observed(task, "images")
            if len(images):
                observed.inputs(images.images[images.task == index])
            observed.labels(own.classes or ())
            notes += observed.notes()
    for title, found in zip([*titles, "auxiliary images"], left_out):
        notes += _left_out(found, title, what)
    return images, tuple(dict.fromkeys(notes))


def count_images(
    data: DataConfig | None, tasks: Sequence[Task], pixels: Callable[[], Transform]
) -> tuple[list[int], list[int], int, tuple[str, ...]]:
    """Number of sampled images (views included) per task, of images that measure it, of other images; notes.

    No image is read.
    """
    if data is None:
        return [], [], 0, ()
    transform = pixels()
    pools, tests = Pools.of(data, tasks, transform), build_sets(data, "test", tasks, transform)
    measured = hold_back(pools, tests, 0)
    held = held_counts(measured, len(tasks))
    counts = [pools.count(index, own) * _views(data) for index, own in enumerate(held.own)]
    other = pools.count_auxiliary(held.auxiliary) * _views(pools.auxiliary[1] if pools.auxiliary else data)
    notes = [note for own in [*pools.own, *tests, pools.shared] if own for note in own.notes]
    if pools.shared is not None:
        other += pools.count_shared(held.shared) * _views(data)
        notes.append(pools.shared_note(held.shared))
    notes += held_back_notes(data, measured, tasks)
    sizes = [len(own.images) if own.images else 0 for own in measured]
    return counts, sizes, other, tuple(dict.fromkeys(notes))


def no_images() -> Images:
    """An empty set of images."""
    empty = torch.empty(0, dtype=torch.long)
    return Images(torch.empty(0), empty, empty, empty)


def _views(data: DataConfig) -> int:
    return 1 if data.augment == "none" else 1 + data.views


def _too_few(pools: Pools, index: int, held: int) -> str | None:
    own, task = pools.own[index], pools.tasks[index]
    requested = pools.data.of(task.name).images_per_task if own else "all"
    if own is None or requested == "all" or len(own) - held >= requested:
        return None
    found = f"{len(own)} images" + (f", {held} of them held back" if held else "")
    rest = f"the other {len(own) - held} are used" if held else "all of them are used"
    return f"task '{task.name}' has {found}, fewer than images_per_task={requested}; {rest}"


def _require_any(found: LeftOut, images: Images, where: str, tests: str, kind: Kind) -> None:
    """Raise DataError where every image of a task is one of its test images."""
    if not found.test or bool((images.task == found.task).any()):
        return
    title, duplicate = found.test[0]
    what = f"{kind}s"
    raise DataError(
        f"{where}: no {kind} is left: {len(found.test)} are identical to {tests} {what} (such as {title} and "
        f"{duplicate}), and a merge does not train on what measures it. Pass other {what} for one of the two."
    )


def _left_out(images: LeftOut, where: str, tests: str) -> list[str]:
    """Notes on the images of one task that were left out. tests: what the images that measure are called."""
    found = [_skipped(images.unreadable, "image")] if images.unreadable else []
    for kind, pairs in {tests: images.test, "validation": images.validation}.items():
        if pairs:
            what = "duplicates" if len(pairs) > 1 else "duplicate"
            few = ", ".join(f"{title} is identical to {duplicate}" for title, duplicate in pairs[:MAX_EXAMPLES])
            rest = ", ..." if len(pairs) > MAX_EXAMPLES else ""
            found.append(f"{len(pairs)} {what} of {kind} images left out ({few}{rest})")
    return [f"{where}: {text}" for text in found]


def _skipped(names: Sequence[str], what: str) -> str:
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} skipped, unreadable: {', '.join(names[:10])}{rest}"
