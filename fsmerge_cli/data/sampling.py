"""The images of a run: those that are drawn, those of the test, and that no image is among both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import torch
from PIL import Image
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.data import DataConfig, ImageSet, Task, auxiliary_images
from fsmerge_cli.data.base import Split
from fsmerge_cli.data.draw import NO_TASK, READ, Images, Loss, digest, draw
from fsmerge_cli.data.reading import sift, together

SHOWN = 3
"""Examples that a note names."""

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Tests:
    """The test images of every task (None: none), but for those that cannot be read.

    marks: digests, and what the images are called. notes: what the user should know about them. sha256: of their
    pixels and labels by task; equal where models were asked the same.
    """

    __test__ = False  # not a test class

    sets: Sequence[ImageSet | None]
    marks: dict[bytes, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str = sha256(b"[]").hexdigest()


def built(data: DataConfig, split: Split, tasks: Sequence[Task], transform: Transform) -> list[ImageSet | None]:
    """The images of every task in a split; of the training, none where none are asked for. Raises DataError."""
    unasked = [split == "train" and (data.taskless or data.of(task.name).images_per_task == 0) for task in tasks]
    return [None if no else data.build(split, task, transform) for task, no in zip(tasks, unasked)]


def looked_at(
    sets: Sequence[ImageSet | None], tasks: Sequence[Task], workers: int = 0, progress: Progress = silent
) -> Tests:
    """Read every test image once. Raises DataError that names those that cannot be read, where none may be bad."""
    total, seen = sum(len(own) for own in sets if own), 0
    marks: dict[bytes, str] = {}
    notes: list[str] = []
    errors: list[DataError] = []
    kept: list[ImageSet | None] = []
    content: list[tuple[str, str]] = []
    for task, own in zip(tasks, sets):
        if own is None:
            kept.append(None)
            continue
        bad: set[int] = set()
        asked = sha256()
        for part in sift(own, range(len(own)), READ, workers):
            for row, pixels, label in zip(part.numbers, *(part.content or ((), ()))):
                mark, name = digest(pixels), task.labels[label] if task.labels and label >= 0 else None
                marks[mark] = own.title(row)
                asked.update(repr((mark, name)).encode())
            bad |= part.errors.keys()
            errors += [] if own.lenient else part.errors.values()
            seen += len(part.numbers) + len(part.errors)
            progress(Event("look at test images", seen, total, images=1))
        content.append((task.name, asked.hexdigest()))
        if bad:
            notes.append(f"task '{task.name}': {_unreadable(sorted(map(own.title, bad)), 'test image')}")
            own = own.only([row for row in range(len(own)) if row not in bad]) if len(bad) < len(own) else None
        kept.append(own)
    if errors:
        raise together(errors)
    return Tests(kept, marks, tuple(notes), sha256(repr(sorted(content)).encode()).hexdigest())


def prepared(
    data: DataConfig | None,
    tasks: Sequence[Task],
    pixels: Callable[[], Transform],
    seed: int,
    workers: int = 0,
    progress: Progress = silent,
) -> tuple[Tests, Images, list[str]]:
    """The test images of every task, the images that a merge may see, and what to know. Raises DataError."""
    if data is None:
        return Tests([None] * len(tasks)), nothing(), ["no data: nothing was evaluated"]
    transform = pixels()
    tests = looked_at(built(data, "test", tasks, transform), tasks, workers, progress)
    images, notes = drawn(data, tasks, transform, tests, seed, workers, progress)
    return tests, images, [*notes, *tests.notes]


def drawn(
    data: DataConfig,
    tasks: Sequence[Task],
    transform: Transform,
    tests: Tests,
    seed: int,
    workers: int = 0,
    progress: Progress = silent,
) -> tuple[Images, tuple[str, ...]]:
    """The images that a merge may see, none of them among the test's, and what to know. Raises DataError."""
    sets = built(data, "train", tasks, transform)
    others = auxiliary_images(data, transform)
    notes = [note for own in [*sets, *tests.sets] if own for note in own.notes]
    if others is not None:
        kind = "generated" if others[1].name in ("generated", "none") else f"unrelated (data={others[1].name})"
        notes.append(f"{others[1].count(len(others[0]))} images belong to no task: {kind}")
    notes += [note for task, own in zip(tasks, sets) if own and (note := _too_few(data, task, own))]
    full = [own or ImageSet(0, _no_image, transform, labelled=False) for own in sets if not data.taskless]
    counts = [data.of(task.name).count(len(own)) for task, own in zip(tasks, full)]
    images, losses = draw(data, full, seed, workers, others, progress, counts, tests.marks)
    return images, tuple(dict.fromkeys([*notes, *(note for loss in losses for note in _lost(loss, tasks))]))


def counted(
    data: DataConfig | None, tasks: Sequence[Task], pixels: Callable[[], Transform]
) -> tuple[list[int], list[int], int]:
    """Images that a merge may see with their views, and test images, per task; those of no task. None is read."""
    if data is None:
        return [], [], 0
    transform = pixels()
    sets, others = built(data, "train", tasks, transform), auxiliary_images(data, transform)
    counts = [data.of(task.name).count(len(own)) if own else 0 for task, own in zip(tasks, sets)]
    count, other = (others[1].count(len(others[0])), others[1]) if others else (0, data)
    tests = [len(own) if own else 0 for own in built(data, "test", tasks, transform)]
    return [n * _views(data) for n in counts], tests, count * _views(other)


def nothing() -> Images:
    """No image at all."""
    empty = torch.empty(0, dtype=torch.long)
    return Images(torch.empty(0), empty, empty, empty)


def _views(data: DataConfig) -> int:
    return 1 if data.augment == "none" else 1 + data.views


def _too_few(data: DataConfig, task: Task, own: ImageSet) -> str | None:
    wanted = data.of(task.name).images_per_task
    if wanted == "all" or len(own) >= wanted:
        return None
    return f"task '{task.name}' has {len(own)} images, fewer than images_per_task={wanted}; all of them are used"


def _lost(loss: Loss, tasks: Sequence[Task]) -> list[str]:
    """What was left out of one draw, in sentences."""
    where = "images of no task" if loss.task == NO_TASK else f"task '{tasks[loss.task].name}'"
    found = [_unreadable(loss.unreadable, "image")] if loss.unreadable else []
    places = {"test images": loss.test, "validation images": loss.validation}
    for what, pairs in places.items():
        if pairs:
            count = f"{len(pairs)} drawn image{'s' if len(pairs) > 1 else ''}"
            few = ", ".join(f"{name} is {double}" for name, double in pairs[:SHOWN])
            rest = ", ..." if len(pairs) > SHOWN else ""
            found.append(f"{count} left out, identical to one among the {what} ({few}{rest})")
    return [f"{where}: {text}" for text in found]


def _unreadable(names: Sequence[str], what: str) -> str:
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} skipped, unreadable: {', '.join(names[:10])}{rest}"


def _no_image(index: int) -> tuple[Image.Image, int]:
    raise DataError("there is no image.")
