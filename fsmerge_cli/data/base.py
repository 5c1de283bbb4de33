"""What a data set states, and how images become tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.options import FORBID, Count, Positive, Share
from fsmerge_cli.data.images.augment import Augment
from fsmerge_cli.models.preprocessing import PLAIN, Preprocessing

Split = Literal["train", "test"]

T = TypeVar("T")


@plain_dataclass(frozen=True)
class Task:
    """A task as data sets see it: its name and the labels of its head, in order (None: no head).

    alone: whether the data set is this task's alone, so that it need not be looked for under the task's name.
    """

    name: str
    labels: tuple[str, ...] | None
    alone: bool = False


@plain_dataclass(frozen=True)
class ImageSet:
    """Images of one task: `size` of them, `read(i)` -> (image, class index in the task's labels; -1: none).

    classes: the class index of every image, where it is known without reading the image. lenient: images that
    cannot be read are left out instead of refused. notes: what the user should know about this set. called: what
    an image is called in a message (None: by its number).
    """

    size: int
    read: Callable[[int], tuple[Image.Image, int]]
    transform: Callable[[Image.Image], Tensor]
    labelled: bool
    classes: Sequence[int] | None = None
    lenient: bool = False
    notes: tuple[str, ...] = ()
    called: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Pixels in 0..1 [C, H, W], and the class index."""
        image, label = self.read(index)
        return self.transform(image), label

    def only(self, rows: Sequence[int]) -> ImageSet:
        """The same images, those of `rows` alone."""
        return replace(
            self,
            size=len(rows),
            read=partial(_of_row, self.read, rows),
            classes=None if self.classes is None else [self.classes[row] for row in rows],
            called=partial(_of_row, self.title, rows),
        )

    def title(self, index: int) -> str:
        """What an image is called."""
        return self.called(index) if self.called else f"number {index}"


def _of_row(found: Callable[[int], T], rows: Sequence[int], index: int) -> T:
    return found(rows[index])


def numbered(rows: Sequence[int], where: str, index: int) -> str:
    """What an image is called that has a number alone: where it is, and its row there."""
    return f"{where} {rows[index]}"


@plain_dataclass(frozen=True)
class ToPixels:
    """PIL image -> pixels in 0..1 [C, H, W] of the size that the sources read."""

    input_size: tuple[int, int, int]
    preprocessing: Preprocessing = PLAIN

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise DataError(
                f"the sources read images of {channels} channels; data sets give 1 (grey) or 3 (colour)."
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert to grey or RGB, resize and crop as source 1 states, scale to 0..1."""
        channels, height, width = self.input_size
        if image.mode.startswith("I"):  # 16 bits, which PIL would cut off instead of scaling
            image = Image.fromarray(np.rint(np.asarray(image, dtype=np.float32) / 257).astype(np.uint8))
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height) or self.preprocessing.crop_pct != 1.0:
            image = self._resize(image, height, width)
        pixels = np.asarray(image, dtype=np.float32) / 255.0
        return torch.from_numpy(pixels.reshape(height, width, -1)).movedim(-1, 0).contiguous()

    def _resize(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """To size / crop_pct, both sides (squash) or the short one (center), then the centre."""
        share = self.preprocessing.crop_pct
        resample = Image.Resampling[self.preprocessing.interpolation.upper()]
        size = math.floor(width / share), math.floor(height / share)
        if self.preprocessing.crop_mode == "center":
            scale = max(size[0] / image.width, size[1] / image.height)
            size = max(size[0], round(image.width * scale)), max(size[1], round(image.height * scale))
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        return image.resize(size, resample).crop((left, top, left + width, top + height))


@dataclass(frozen=True, config=FORBID)
class DataConfig(ABC):
    """Fields that every data set has.

    name: key in DATASETS. images_per_task: all the unlabelled images that a merge may see of each task, the
    validation share included; `all` takes every one of the training split. augment: none, shift, paper or
    strong, for what every method sees. views: augmented copies added per image, where augment is not none.
    validation: share of the images kept for choosing the best step; used from 32 images per task on. auxiliary:
    another data set (its name and keys; labels: which of its images), whose images belong to no task: every
    source is asked about each.
    """

    taskless: ClassVar[bool] = False
    """Whether the images belong to no task."""

    name: str
    images_per_task: Count | Literal["all"] = 100
    augment: Augment = "none"
    views: Positive = 4
    validation: Share = 0.1
    auxiliary: Mapping[str, Any] | None = None

    @classmethod
    def label_sets(cls) -> Mapping[str, tuple[str, ...]]:
        """Label sets that a source may name instead of listing its labels; none by default."""
        return {}

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Names of the classes of a task in the order of their rows; None where the data set does not say them."""
        return None

    def of(self, task: str) -> DataConfig:
        """The data set of one task; this one, where it is the same for all."""
        return self

    def paths(self) -> Mapping[str, str]:
        """Files and folders that are read, by the key that names them."""
        return {}

    def count(self, there: int) -> int:
        """How many images are drawn where there are so many."""
        return there if self.images_per_task == "all" else min(self.images_per_task, there)

    @abstractmethod
    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of `task` in `split`; None where that split has none. Raises DataError."""
