"""No image of any task: the merge asks with images that are generated, or with those of another data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID, Positive
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task
from fsmerge_cli.data.images.generated import Generated


@dataclass(frozen=True, config=FORBID)
class NoImages(DataConfig):
    """There is no task data, so nothing is evaluated either; every source is asked about images of no task.

    images_per_task: how many of these there are for all tasks together. auxiliary: the data set that they are
    taken from; null generates them.
    """

    taskless: ClassVar[bool] = True

    name: Literal["none"] = "none"
    images_per_task: Positive = 2000

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """Generated images to train on, and no others; `task` changes nothing."""
        return Generated(images_per_task=self.images_per_task).build(split, task, transform)
