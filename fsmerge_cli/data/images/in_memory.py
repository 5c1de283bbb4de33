"""Images that a Python program passes: tensors, arrays, lists, torch datasets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.options import FORBID, Count, build
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task
from fsmerge_cli.data.images.collection import CONTENT, Collection
from fsmerge_cli.data.images.tensors import Layout
from fsmerge_cli.data.matching import of_task

NAME = "in_memory"

PLAIN = (str, int, float, bool, type(None))

Data = str | Path | Mapping[str, Any] | DataConfig | Any
"""Name or keys of a data set, a folder, or images from Python (see `InMemory`)."""


def from_python(data: Data) -> Any:
    """Images or a folder as a data set; the name or the keys of a data set as they are. Raises ConfigError."""
    if data is None or isinstance(data, DataConfig):
        return data
    if isinstance(data, Path) or (isinstance(data, str) and ("/" in data or "\\" in data or data.startswith("~"))):
        return {"name": "folder", "root": str(data)}
    if isinstance(data, str):
        return data
    if isinstance(data, Mapping) and data.get("name") == NAME:
        return build(InMemory, data, "data")
    own = {field.name for field in fields(DataConfig)}
    keys = isinstance(data, PLAIN) or (isinstance(data, Mapping) and (not data or bool(own & set(data))))
    return data if keys else InMemory(content=data)


@dataclass(frozen=True, config=FORBID)
class InMemory(DataConfig):
    """Images from Python, one collection for all tasks or one per task.

    content: a collection is a tensor or array of images [n, C, H, W], [n, H, W, C] or [n, H, W] (uint8, or floats
    in 0..1), a pair (images, labels), a list of images or paths, a folder, a torch Dataset or DataLoader whose
    items are images or pairs (image, label), or `{"train": collection, "test": collection}`. A mapping from the
    names of the tasks holds one per task. Without labels, a single collection belongs to no particular task, and
    every source sees every image. layout: of arrays whose shape is ambiguous.
    """

    why_mixed: ClassVar[str] = "the images have no labels and no task"
    mixed_meaning: ClassVar[str] = ""

    name: Literal["in_memory"] = "in_memory"
    images_per_task: Count | Literal["all"] = "all"
    content: Any = None
    layout: Layout = "auto"

    def options(self) -> dict[str, Any]:
        """As in config.yaml: what the content was, not the content."""
        plain = replace(self, content=None)  # so that the content is not copied
        return {**super(InMemory, plain).options(), "content": _described(self.content)}

    def is_mixed(self, tasks: Sequence[str]) -> bool:
        """Whether there is one collection for all tasks, without labels. Raises DataError."""
        if self._by_task or self._collection("", "train").labelled:
            return False
        if self._collection("", "test").labelled and len(tasks) > 1:
            raise DataError(
                "data: the test images have labels, and the training images have none, so that they belong to no "
                'task. Pass one entry per task: data={"TASK": {"train": ..., "test": ...}, ...}.'
            )
        return True

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Class names that a dataset states, or those among the labels."""
        found = self._collection(task.name, "train").names or self._collection(task.name, "test").names
        return tuple(found) if found else None

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

    @property
    def _by_task(self) -> bool:
        """Whether there is one collection per task."""
        return isinstance(self.content, Mapping) and not _has_splits(self.content)

    def _collection(self, task: str, split: Split) -> Collection:
        """The images of a task in a split; empty where there are none. Raises DataError."""
        key = task if self._by_task else "", split
        if key not in self._collections:
            self._collections[key] = self._made(*key)
        return self._collections[key]

    @cached_property
    def _collections(self) -> dict[tuple[str, Split], Collection]:
        return {}

    def _made(self, task: str, split: Split) -> Collection:
        content, where = self.content, "data"
        if self._by_task:
            if task not in content:
                given = ", ".join(sorted(map(str, content))) or "none"
                raise DataError(
                    f"data: there are no images for task '{task}'. Given: {given}. Pass {{\"{task}\": ...}}."
                )
            content, where = content[task], f"data['{task}']"
        if _has_splits(content):
            content, where = content.get(split), f"{where}['{split}']"
        elif split == "test":
            content = None
        return Collection([] if content is None else content, where, self.layout)


def _has_splits(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and set(content) <= {"train", "test"}


def _read(found: Collection, rows: Sequence[int], places: Sequence[int], i: int) -> tuple[Image.Image, int]:
    return found.image(rows[i]), places[i]


def _title(where: str, rows: Sequence[int], i: int) -> str:
    return f"{where}[{rows[i]}]"


def _described(content: Any) -> Any:
    """The content for a person: the type and the size, by task and split."""
    if isinstance(content, Mapping):
        return {str(key): _described(value) for key, value in content.items()}
    if hasattr(content, "shape"):
        return f"{type(content).__name__} {list(content.shape)}"
    size = f" of {len(content)}" if hasattr(content, "__len__") and not isinstance(content, str) else ""
    return f"{type(content).__name__}{size}"
