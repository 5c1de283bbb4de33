"""Notes on what the images of a task are like: labels without an image, pixels that use little of the range."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.shown import listed
from fsmerge_cli.data.base import Task

DARK = 0.25
"""Below this largest pixel (of 0..1), a set of images is likely stored with fewer bits than its type has."""

MAX_LISTED = 5
"""Largest number of labels listed in a note."""


class Observed:
    """What was seen of the images of one task. what: `images` or `test images`."""

    def __init__(self, task: Task, what: str) -> None:
        self.task, self.what = task, what
        self.brightest: float | None = None
        self.classes: set[int] = set()

    def inputs(self, pixels: Inputs) -> None:
        """Add images in 0..1 of any shape; of texts only the labels are observed."""
        if isinstance(pixels, Tensor) and pixels.numel():
            self.brightest = max(self.brightest or 0.0, float(pixels.max()))

    def labels(self, classes: Iterable[int]) -> None:
        """Add class indices (-1: none)."""
        self.classes |= {int(label) for label in classes if label >= 0}

    def notes(self) -> tuple[str, ...]:
        """The notes for the user."""
        found = []
        start = f"task '{self.task.name}': " if self.task.name else ""
        its = "its" if self.task.name else "the"
        if self.brightest is not None and self.brightest < DARK:
            found.append(
                f"{start}no pixel of {its} {self.what} is above {self.brightest:.3g} of the range "
                "0..1: if they are stored with fewer bits than their files have, scale them to the whole range"
            )
        missing = [label for row, label in enumerate(self.task.labels or ()) if row not in self.classes]
        if self.classes and missing:
            found.append(f"{start}there are no {self.what} of {_few(missing)}")
        return tuple(found)


def _few(names: list[str]) -> str:
    return listed(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
