"""What a Python program passes as data: one collection for all tasks, or one per task, with splits or without."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Literal, Protocol

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.errors import DataError, FsmergeError, first_line
from fsmerge_cli.common.options import FORBID, Count
from fsmerge_cli.common.shown import shown
from fsmerge_cli.data.base import DataConfig, Split, Task

NAME = "in_memory"


class Rows(Protocol):
    """A collection of images or texts. where: prefix of messages."""

    where: str

    def __len__(self) -> int: ...

    @property
    def labelled(self) -> bool:
        """Whether the items have labels."""

    @property
    def names(self) -> Sequence[str] | None:
        """The names of the class indices, where the collection states them or its labels are names."""


MAX_STREAMED = 1_000_000
"""Most items that are read from a collection without a length, which may have no end."""


def drained(stream: Iterable[Any], where: str) -> list[Any]:
    """Every item of a collection without a length. Raises DataError for one that does not end."""
    found = [*islice(stream, MAX_STREAMED + 1)]
    if len(found) > MAX_STREAMED:
        raise DataError(
            f"{where} has more than {MAX_STREAMED:,} items and no length. Pass one that ends, or a Dataset with a "
            "length, which is read when needed."
        )
    return found


@contextmanager
def code_of_others(where: str) -> Iterator[None]:
    """Inside, what a collection of the user's own raises becomes a DataError that names the place."""
    try:
        yield
    except FsmergeError:
        raise
    except Exception as error:
        raise DataError(
            f"{shown(where)}: {type(error).__name__} in the code of the collection itself ({first_line(error)}). "
            "Pass one whose length and rows can be read."
        ) from error


@dataclass(frozen=True, config=FORBID)
class Content(DataConfig):
    """Images or texts from Python.

    content: a collection; or `{"train": collection, "test": collection}`; or a mapping from the names of the tasks
    to these. Without labels, a single collection belongs to no particular task, and every source sees all of it.
    """

    mixed_meaning: ClassVar[str] = ""

    name: Literal["in_memory"] = "in_memory"
    images_per_task: Count | Literal["all"] = "all"
    content: Any = None

    def options(self) -> dict[str, Any]:
        """As in config.yaml: what the content was, not the content."""
        plain = replace(self, content=None)  # so that the content is not copied
        return {**super(Content, plain).options(), "content": _described(self.content)}

    def is_mixed(self, tasks: Sequence[str]) -> bool:
        """Whether there is one collection for all tasks, without labels. Raises DataError."""
        if self._by_task or self._collection("", "train").labelled:
            return False
        if self._collection("", "test").labelled and len(tasks) > 1:
            raise DataError(
                f"data: the test {self.kind}s have labels, and the training {self.kind}s have none, so that they "
                'belong to no task. Pass one entry per task: data={"TASK": {"train": ..., "test": ...}, ...}.'
            )
        return True

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Class names that a dataset states, or those among the labels."""
        found = self._collection(task.name, "train").names or self._collection(task.name, "test").names
        return tuple(found) if found else None

    @abstractmethod
    def _collected(self, value: Any, where: str) -> Any:
        """A collection of one task and split."""

    @property
    def _by_task(self) -> bool:
        """Whether there is one collection per task."""
        return isinstance(self.content, Mapping) and not _has_splits(self.content)

    def _collection(self, task: str, split: Split) -> Any:
        """The items of a task in a split; empty where there are none. Raises DataError."""
        key = task if self._by_task else "", split
        if key not in self._collections:
            self._collections[key] = self._made(*key)
        return self._collections[key]

    @cached_property
    def _collections(self) -> dict[tuple[str, Split], Rows]:
        return {}

    def _made(self, task: str, split: Split) -> Any:
        content, where = self.content, "data"
        if self._by_task:
            if task not in content:
                given = ", ".join(sorted(map(str, content))) or "none"
                raise DataError(
                    f"data: there are no {self.kind}s for task '{task}'. Given: {given}. Pass {{\"{task}\": ...}}."
                )
            content, where = content[task], f"data['{task}']"
        if _has_splits(content):
            content, where = content.get(split), f"{where}['{split}']"
        elif split == "test":
            content = None
        with code_of_others(where):
            return self._collected([] if content is None else content, where)


def _has_splits(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and set(content) <= {"train", "test"}


def _described(content: Any) -> Any:
    """The content for a person: the type and the size, by task and split."""
    if isinstance(content, Mapping):
        return {str(key): _described(value) for key, value in content.items()}
    size = ""
    with suppress(Exception):  # of code of the user's own, which is reported where the items are read
        if hasattr(content, "shape"):
            return f"{type(content).__name__} {list(content.shape)}"
        size = f" of {len(content)}" if hasattr(content, "__len__") and not isinstance(content, str) else ""
    return f"{type(content).__name__}{size}"
