"""Images that a Python program passes: tensors, arrays, lists, torch datasets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.data.base import ImageSet, Split, Task
from fsmerge_cli.data.content import Content
from fsmerge_cli.data.images.collection import CONTENT, Collection
from fsmerge_cli.data.images.tensors import Layout
from fsmerge_cli.data.matching import of_task


@dataclass(frozen=True, config=FORBID)
class InMemory(Content):
    """Images from Python, one collection for all tasks or one per task.

    content: see `Content`; a collection is a tensor or array of images [n, C, H, W], [n, H, W, C] or [n, H, W]
    (uint8, or floats in 0..1), a pair (images, labels), a list of images or paths, a folder, a torch Dataset or
    DataLoader whose items are images or pairs (image, label). layout: of arrays whose shape is ambiguous.
    """

    why_mixed: ClassVar[str] = "the images have no labels and no task"

    layout: Layout = "auto"

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of one task; if they have labels, only those with a label of the task. Raises DataError."""
        found = self._collection(task.name, split)
        if not len(found):
            if split == "test":
                return None
            raise DataError(f"{found.where} holds no images. Pass {CONTENT}.")
        rows, places = [*range(len(found))], [-1] * len(found)
        notes: tuple[str, ...] = ()
        if found.labelled and task.name:
            rows, places, notes = of_task(task, found.labels, found.names, found.where)
        labelled = all(place >= 0 for place in places)
        read, title = partial(_read, found, rows, places), partial(_title, found.where, rows)
        return ImageSet(len(rows), read, transform, labelled, places, notes=notes, title_of=title)

    def _collected(self, value: Any, where: str) -> Collection:
        return Collection(value, where, self.layout)


def _read(found: Collection, rows: Sequence[int], places: Sequence[int], i: int) -> tuple[Image.Image, int]:
    return found.image(rows[i]), places[i]


def _title(where: str, rows: Sequence[int], i: int) -> str:
    return f"{where}[{rows[i]}]"
