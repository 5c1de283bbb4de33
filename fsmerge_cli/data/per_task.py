"""A separate data set for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.common.options import FORBID, choose
from fsmerge_cli.common.separation import Input
from fsmerge_cli.data.base import DataConfig, ImageSet, LabelKind, Split, Task

PER_TASK_OPTIONS = ("name", "images_per_task")
"""Options of every data set that may differ between tasks; the others hold for all tasks."""


@dataclass(frozen=True, config=FORBID)
class PerTask(DataConfig):
    """Each task has a data set of its own.

    tasks: name of the task -> name and keys of its data set, as under `data`. A task may have its own
    images_per_task; augment, views, validation and auxiliary hold for all tasks.
    """

    kind: ClassVar[Literal["image", "text", "any"]] = "any"

    name: Literal["per_task"] = "per_task"
    tasks: Mapping[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Check the keys before anything is read."""
        for task in self.tasks or {}:
            self.of(task)

    def of(self, task: str) -> DataConfig:
        """The data set of one task. Raises ConfigError if its keys are wrong, DataError if it has none."""
        from fsmerge_cli.data import DATASETS  # which lists this class

        if task not in (self.tasks or {}):
            listed = ", ".join(sorted(self.tasks or {})) or "none"
            raise DataError(
                f"data=per_task: no data set for task '{task}' in data.tasks. Listed: {listed}. Pass "
                f"data.tasks.{task}={{name: folder, root: PATH}}"
            )
        values, where = (self.tasks or {})[task], f"data.tasks.{task}"
        shared = [f.name for f in fields(DataConfig) if f.name not in PER_TASK_OPTIONS and f.name in values]
        if shared:
            raise ConfigError(f"{where}.{shared[0]}: this key holds for all tasks. Set data.{shared[0]} instead.")
        found = choose(DATASETS, {"images_per_task": self.images_per_task, **values}, where)
        if found.auxiliary_only or isinstance(found, PerTask):
            raise ConfigError(
                f"{where}.name={found.name}: this is not a data set of one task. Pass another one, or "
                f"{where}.images_per_task=0 for a task without training images."
            )
        return found

    def inputs(self, tasks: Sequence[str]) -> list[Input]:
        """What is read for each task, from its own data set."""
        return [
            found._replace(what=f"data.tasks.{task}.{found.what.removeprefix('data.')}")
            for task in tasks
            if task in (self.tasks or {})
            for found in self.of(task).inputs([task])
        ]

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Class names in the task's own data set."""
        return self.of(task.name).classes(replace(task, own_data=True))

    def label_kind(self, task: Task) -> LabelKind | None:
        """That of the task's own data set."""
        return self.of(task.name).label_kind(replace(task, own_data=True))

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of one task, from its own data set."""
        return self.of(task.name).build(split, replace(task, own_data=True), transform)
