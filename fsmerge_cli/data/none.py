"""No task data: the merge uses generated images, or those of another data set."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import FORBID, Positive
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task, Transform
from fsmerge_cli.data.images.generated import Generated
from fsmerge_cli.data.text.random import random_texts
from fsmerge_cli.data.text.tokens import ToTokens


@dataclass(frozen=True, config=FORBID)
class NoImages(DataConfig):
    """No task data: all images are auxiliary, every source is a teacher on each of them, and nothing is evaluated.

    images_per_task: number of auxiliary images, for all tasks together. auxiliary: the data set that they are
    taken from; null generates them. Generated texts are random words
    of the tokenizer.
    """

    kind: ClassVar[Literal["image", "text", "any"]] = "any"
    auxiliary_only: ClassVar[bool] = True

    name: Literal["none"] = "none"
    images_per_task: Positive = 2000

    def build(self, split: Split, task: Task, transform: Transform) -> ImageSet | None:
        """Generated training images or texts; None for the test split. They do not depend on `task`."""
        if isinstance(transform, ToTokens):
            return None if split == "test" else random_texts(self.images_per_task, transform)
        return Generated(images_per_task=self.images_per_task).build(split, task, transform)
