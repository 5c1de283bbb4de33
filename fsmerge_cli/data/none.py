"""No task data: the merge uses generated images, or those of another data set."""

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
    """No task data: all images are auxiliary, every source is a teacher on each of them, and nothing is evaluated.

    images_per_task: number of auxiliary images, for all tasks together. auxiliary: the data set that they are
    taken from; null generates them.
    """

    auxiliary_only: ClassVar[bool] = True

    name: Literal["none"] = "none"
    images_per_task: Positive = 2000

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """Generated training images; None for the test split. They do not depend on `task`."""
        return Generated(images_per_task=self.images_per_task).build(split, task, transform)
