"""The interface of a data set, and the conversion of images to tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError, reason
from fsmerge_cli.common.options import FORBID, Count, Positive, Share
from fsmerge_cli.common.separation import Input
from fsmerge_cli.common.shown import shown
from fsmerge_cli.data.images.augment import Augment
from fsmerge_cli.data.images.eight_bit import upright_8_bit
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.preprocessing import PLAIN, Preprocessing
from fsmerge_cli.models.tokenization import Tokenization

Split = Literal["train", "test"]

LabelKind = Literal["names", "whole numbers", "numbers", "tags"]
"""What the labels of a data set are: names of classes, numbers that may be class indices or not, tags of words."""

T = TypeVar("T")

Transform = Callable[[Any], Any]
"""An image or a text -> what a network reads of it (see `common.inputs`), without the axis of the rows."""


@plain_dataclass(frozen=True)
class Task:
    """A task as data sets see it: its name and the labels of its head, in order (None: no head).

    own_data: whether the data set holds only this task; its folder then needs no subfolder named after the task.
    named: whether the labels are names of classes; otherwise they are only the numbers of the head's rows, and
    matching them to classes is a guess. number: whether a number is predicted for an item; then there are no
    labels.
    """

    name: str
    labels: tuple[str, ...] | None
    own_data: bool = False
    named: bool = True
    number: bool = False

    @classmethod
    def of(cls, name: str, head: Head | None, classes: tuple[str, ...] | None = None) -> Task:
        """The task of a source or a model with this head; without one, of these `classes`."""
        if head is None or head.regression:
            return cls(name, None if head else classes, number=head is not None)
        return cls(name, head.labels, named=head.named)


@plain_dataclass(frozen=True)
class ImageSet:
    """Images or texts of one task: `size` of them, `read(i)` -> (item, class index in the task's labels, or -1).

    classes: the class index of every image, if it is known without reading the image. skip_unreadable: leave out
    images that cannot be read, instead of raising an error. notes: what the user should know about this set.
    title_of: the name of an image in messages (None: its index). tags: the class index of every token of an item
    whose features are read (-1: none), where these are several. values: the number that is to be predicted for
    every item (NaN: none), where it is one.
    """

    size: int
    read: Callable[[int], tuple[Any, int]]
    transform: Transform
    labelled: bool
    classes: Sequence[int] | None = None
    skip_unreadable: bool = False
    notes: tuple[str, ...] = ()
    title_of: Callable[[int], str] | None = None
    tags: Callable[[int], list[int]] | None = None
    values: Sequence[float] | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Pixels in 0..1 [C, H, W] or the tensors of a text, and the class index (-1: none)."""
        image, label = self.read(index)
        return self.transform(image), label

    def only(self, rows: Sequence[int]) -> ImageSet:
        """The subset of the images at `rows`."""
        return replace(
            self,
            size=len(rows),
            read=partial(_at_row, self.read, rows),
            classes=None if self.classes is None else [self.classes[row] for row in rows],
            title_of=partial(_at_row, self.title, rows),
            tags=None if self.tags is None else partial(_at_row, self.tags, rows),
            values=None if self.values is None else [self.values[row] for row in rows],
        )

    def labels(self, index: int) -> list[int]:
        """The class index of every row of features of an item (-1: none)."""
        if self.tags is not None:
            return self.tags(index)
        return [self.read(index)[1] if self.classes is None else self.classes[index]]

    def title(self, index: int) -> str:
        """The name of an image in messages."""
        return shown(self.title_of(index)) if self.title_of else f"number {index}"


def _at_row(function: Callable[[int], T], rows: Sequence[int], index: int) -> T:
    return function(rows[index])


def row_title(rows: Sequence[int], where: str, index: int) -> str:
    """The name of an image without a file name: its data set and its row there."""
    return f"{where} {rows[index]}"


@plain_dataclass(frozen=True)
class ToPixels:
    """PIL image -> pixels in 0..1 [C, H, W], at the input size of the sources."""

    input_size: tuple[int, int, int]
    preprocessing: Preprocessing = PLAIN

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise DataError(
                f"the sources take images of {channels} channels; data sets provide 1 (grey) or 3 (colour)."
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert to 8 bits, to grey or RGB, resize and crop by the preprocessing of source 1, scale to 0..1.

        Transparency is dropped. Raises DataError if the range of the pixels is not known.
        """
        channels, height, width = self.input_size
        image = upright_8_bit(image).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height) or self.preprocessing.crop_pct != 1.0:
            image = self._resize(image, height, width)
        pixels = np.asarray(image, dtype=np.float32) / 255.0
        return torch.from_numpy(pixels.reshape(height, width, -1)).movedim(-1, 0).contiguous()

    def _resize(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """Resize to size / crop_pct, both sides (squash) or the short one (center), then crop the centre."""
        share = self.preprocessing.crop_pct
        resample = Image.Resampling[self.preprocessing.interpolation.upper()]
        size = math.floor(width / share), math.floor(height / share)
        if self.preprocessing.crop_mode == "center" and size[0] == size[1]:
            short = min(image.size)  # rounded down as in torchvision's Resize, which timm uses here
            size = size[0] * image.width // short, size[1] * image.height // short
        elif self.preprocessing.crop_mode == "center":
            scale = max(size[0] / image.width, size[1] / image.height)
            size = max(size[0], round(image.width * scale)), max(size[1], round(image.height * scale))
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        return image.resize(size, resample).crop((left, top, left + width, top + height))


@dataclass(frozen=True, config=FORBID)
class DataConfig(ABC):
    """Options of every data set.

    name: key in DATASETS. images_per_task: number of unlabelled images of each task that a merge may use, the
    validation share included; `all` takes the whole training split. augment: none, shift, crop_flip, paper or
    strong, for the images that every method uses. views: augmented copies added per image, unless augment is none.
    validation: share of the images held out for choosing the best step; used from 32 images per task on.
    held_back: share of a task's images that the merge does not use, and that measure it, where there are no test
    images; used from 16 images per task on.
    auxiliary: another data set (its name and keys; labels: only images with these labels) of auxiliary unlabelled
    images, which belong to no task: every source is a teacher on each of them.
    """

    kind: ClassVar[Literal["image", "text", "any"]] = "image"
    """Kind of input that it holds; `any`: that of the sources."""

    auxiliary_only: ClassVar[bool] = False
    """Whether all images are auxiliary: they belong to no task."""

    why_mixed: ClassVar[str] = "no folder is named after a task"
    mixed_meaning: ClassVar[str] = ", and their folders are not classes"
    """Parts of the note where the images belong to no particular task."""

    name: str
    images_per_task: Count | Literal["all"] = 100
    augment: Augment = "none"
    views: Positive = 4
    validation: Share = 0.1
    held_back: Share = 0.2
    auxiliary: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for key, text in self.paths().items():
            try:
                Path(text).expanduser().exists()
            except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~ of an unknown user
                raise DataError(
                    f"{key}={text[:200]!r} cannot be used ({reason(error)}). Pass another path."
                ) from None

    def options(self) -> dict[str, Any]:
        """Every option as a plain value, as in config.yaml."""
        return asdict(self)

    @classmethod
    def label_sets(cls) -> Mapping[str, tuple[str, ...]]:
        """Label sets that a source may refer to by name instead of listing its labels; none by default."""
        return {}

    @classmethod
    def tokenization(cls) -> Tokenization | None:
        """The tokenizer of its texts, for encoders that are trained on them; None by default."""
        return None

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Class names of a task in the order of the head's rows; None if the data set has no names."""
        return None

    def label_kind(self, task: Task) -> LabelKind | None:
        """What the labels of a task's training items are; None without any, and where they are always classes."""
        return None

    def of(self, task: str) -> DataConfig:
        """The data set of one task; this one, unless each task has its own."""
        return self

    def paths(self) -> Mapping[str, str]:
        """Files and folders that are read, by the key that sets them."""
        return {}

    def inputs(self, tasks: Sequence[str]) -> list[Input]:
        """What is read for these tasks, as the outputs of a run are compared with it."""
        paths = self.paths().items()
        return [Input(key, path.replace("{task}", task)) for task in tasks for key, path in paths]

    def is_mixed(self, tasks: Sequence[str]) -> bool:
        """Whether the images belong to no particular task, so that every source sees every image.

        They are then those of the task "", and `images_per_task` times the number of tasks are sampled.
        """
        return False

    def count(self, available: int) -> int:
        """The number of images that are sampled from `available` ones."""
        return available if self.images_per_task == "all" else min(self.images_per_task, available)

    @abstractmethod
    def build(self, split: Split, task: Task, transform: Transform) -> ImageSet | None:
        """The images of `task` in `split`; None if that split has none. Raises DataError."""
