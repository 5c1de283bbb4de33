"""A data set for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Literal

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.common.options import FORBID, choose
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task

OWN = ("name", "images_per_task")
"""Fields of all data sets that a task's own may set; the others are one for all tasks."""


@dataclass(frozen=True, config=FORBID)
class PerTask(DataConfig):
    """Each task has a data set of its own, by the task's name.

    tasks: name of the task -> name and keys of its data set, as `data` has them. images_per_task may be set for a
    task; augment, views, validation and unrelated are those of all tasks together.
    """

    name: Literal["per_task"] = "per_task"
    tasks: Mapping[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Wrong keys are said before anything is read."""
        for task in self.tasks or {}:
            self.of(task)

    def of(self, task: str) -> DataConfig:
        """The data set of one task. Raises ConfigError where its keys are wrong, DataError where it has none."""
        from fsmerge_cli.data import DATASETS  # which has this class in it

        if task not in (self.tasks or {}):
            there = ", ".join(sorted(self.tasks or {})) or "none"
            raise DataError(
                f"data=per_task: no data set for task '{task}' in data.tasks. There are: {there}. Pass "
                f"data.tasks.{task}={{name: folder, root: PATH}}"
            )
        values, where = (self.tasks or {})[task], f"data.tasks.{task}"
        shared = [f.name for f in fields(DataConfig) if f.name not in OWN and f.name in values]
        if shared:
            raise ConfigError(f"{where}.{shared[0]}: this is one for all tasks. Set data.{shared[0]} instead.")
        found = choose(DATASETS, {"images_per_task": self.images_per_task, **values}, where)
        if found.taskless or isinstance(found, PerTask):
            raise ConfigError(
                f"{where}.name={found.name}: this is no data set of one task. Pass another one, or "
                f"{where}.images_per_task=0 for a task without training images."
            )
        return found

    def paths(self) -> Mapping[str, str]:
        """Those of all tasks."""
        return {
            f"data.tasks.{task}.{key.removeprefix('data.')}": path
            for task in self.tasks or {}
            for key, path in self.of(task).paths().items()
        }

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """What the task's own data set says."""
        return self.of(task.name).classes(replace(task, alone=True))

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of the task's own data set."""
        return self.of(task.name).build(split, replace(task, alone=True), transform)
