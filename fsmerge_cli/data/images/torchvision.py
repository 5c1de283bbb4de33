"""Any image-classification data set of torchvision, by its class name."""

from __future__ import annotations

import inspect
import operator
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError, DataError, first_line, unknown
from fsmerge_cli.common.options import FORBID, Flag, Share, Text
from fsmerge_cli.common.separation import Input
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task, row_title
from fsmerge_cli.data.images.decode import raster_only
from fsmerge_cli.data.images.files import compared
from fsmerge_cli.data.matching import of_task

SPLITS: dict[str, tuple[str, str]] = {
    "CLEVRClassification": ("train", "val"),
    "FGVCAircraft": ("trainval", "test"),
    "ImageNet": ("train", "val"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "Places365": ("train-standard", "val"),
}
"""Names of the training split and the labelled test split of these classes; in others they are train and test."""

UNFIT = ("VisionDataset", "DatasetFolder", "LSUN", "LSUNClass")
"""Base classes, and LSUN, which unpickles a cache file in the working directory."""

RESERVED = ("transform", "target_transform", "transforms", "download", "loader")
"""Arguments that cannot be set with data.args."""

PATHS = re.compile("root|dir|folder|path|file", re.IGNORECASE)
"""Part of the name of an argument that is a path."""


@dataclass(frozen=True, config=FORBID)
class TorchVision(DataConfig):
    """A class of torchvision.datasets, from files on disk.

    dataset: the class (MNIST, GTSRB, ImageFolder, ...). root: its folder; `{task}` stands for the task's name.
    args: further arguments of the class. train_args, test_args: arguments that select a split, if `train=` or
    `split=` is not enough. download: whether torchvision may download missing files. test_share: share held out
    for the evaluation if the class has no splits.
    """

    name: Literal["torchvision"] = "torchvision"
    dataset: Text | None = None
    root: Text | None = None
    args: Mapping[str, Any] | None = None
    train_args: Mapping[str, Any] | None = None
    test_args: Mapping[str, Any] | None = None
    download: Flag = False
    test_share: Share = 0.2

    def paths(self) -> Mapping[str, str]:
        """The root."""
        return {} if self.root is None else {"data.root": self.root}

    def inputs(self, tasks: Sequence[str]) -> list[Input]:
        """The root, in which the files of many data sets and also runs may lie, and paths among the arguments."""
        found = [*self.paths().items()]
        for group in ("args", "train_args", "test_args"):
            given = (getattr(self, group) or {}).items()
            found += [(f"data.{group}.{name}", str(value)) for name, value in given if PATHS.search(name)]
        return [Input(key, path.replace("{task}", task), container=True) for task in tasks for key, path in found]

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """`classes` of the training split."""
        found = _names(self._open("train", task.name))
        return None if found is None else tuple(found)

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of a split that have a label of the task; None if there are none to evaluate on."""
        found, where = self._open(split, task.name), f"data=torchvision: {self.dataset}"
        classes = _classes(found, where) if task.labels is not None else [0] * len(found)
        rows, places, notes = of_task(task, classes, _names(found), where)
        if _is_folder(found):
            used = [path for path, _ in found.samples]
            notes += compared(Path(found.root), used, task.name, f"torchvision's {self.dataset}")
        if self._arguments("train", task.name) == self._arguments("test", task.name):
            kept = [i for i, row in enumerate(rows) if _is_held_out(row, self.test_share) == (split == "test")]
            rows, places = [rows[i] for i in kept], [places[i] for i in kept]
            if split == "test" and (not rows or task.labels is None):
                return None
        read = partial(_read, found, rows, places, where)
        title_of = partial(row_title, rows, f"{self.dataset} {split}")
        return ImageSet(
            len(rows), read, transform, all(place >= 0 for place in places), places, notes=notes, title_of=title_of
        )

    def _class(self) -> Any:
        from torchvision import datasets  # slow to import

        names = [name for name in datasets.__all__ if name not in UNFIT]
        if self.dataset is None:
            raise ConfigError("data=torchvision needs data.dataset=NAME, a class of torchvision.datasets (MNIST).")
        if self.dataset not in names:
            raise ConfigError(f"data.dataset: {unknown('torchvision data set', self.dataset, names)}")
        return getattr(datasets, self.dataset)

    def _arguments(self, split: Split, task: str) -> dict[str, Any]:
        """Arguments of the class; the same for both splits if it has no splits."""
        known = _parameters(self._class())
        own = self.train_args if split == "train" else self.test_args
        given = {**(self.args or {}), **(own or {})}
        wrong = [name for name in given if name not in known or name in RESERVED]
        if wrong:
            available = [name for name in known if name not in RESERVED]
            raise ConfigError(f"data.args: {unknown(f'argument of {self.dataset}', wrong[0], available)}")
        if "root" in known and "root" not in given:
            if self.root is None:
                raise DataError(f"data=torchvision needs data.root=PATH, the folder of {self.dataset}.")
            given["root"] = self.root
        if "root" in given:
            given["root"] = str(Path(str(given["root"]).replace("{task}", task)).expanduser())
        if own is None and "train" in known:
            given.setdefault("train", split == "train")
        elif own is None and "split" in known:
            given.setdefault("split", SPLITS.get(str(self.dataset), ("train", "test"))[split == "test"])
        if "download" in known:
            given["download"] = self.download
        elif self.download:
            raise ConfigError(f"data.download=true: torchvision cannot download {self.dataset}. Remove this key.")
        return given

    def _open(self, split: Split, task: str) -> Any:
        arguments = self._arguments(split, task)
        try:
            found = self._class()(**arguments)
            len(found)
        except Exception as error:  # the classes raise errors of many types
            shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            hint = "" if self.download or "download" not in arguments else ", or data.download=true"
            raise DataError(
                f"data=torchvision: {self.dataset}({shown}) cannot be opened ({first_line(error)}). Pass another "
                f"data.root=PATH or data.args={{...}}{hint}."
            ) from None
        return found


def _is_folder(found: Any) -> bool:
    """Whether the images are whatever lies in class folders."""
    from torchvision.datasets import DatasetFolder

    return type(found).__name__ == "ImageFolder" and isinstance(found, DatasetFolder)


def _parameters(cls: Any) -> list[str]:
    """Argument names of a class, including those passed on to its parents."""
    found: dict[str, None] = {}
    for parent in inspect.getmro(cls):
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
        found |= {p.name: None for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    found.pop("self", None)
    return list(found)


def _names(found: Any) -> Sequence[str] | None:
    """Class names, the first one if a class has several (ImageNet); None if there are none."""
    names = getattr(found, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    return [str(name[0] if isinstance(name, list | tuple) else name) for name in names]


def _classes(found: Any, where: str) -> list[int]:
    """Class index of every image; without reading the images if the data set lists them in a known attribute."""
    for name in ("targets", "labels", "_labels", "samples", "_samples"):
        values = getattr(found, name, None)
        if values is None or not hasattr(values, "__len__") or len(values) != len(found):
            continue
        values = values.tolist() if hasattr(values, "tolist") else values
        values = [value[1] if isinstance(value, tuple) and len(value) == 2 else value for value in values]
        if all(isinstance(value, int) for value in values):
            return list(values)
    return [_target(_item(found, i, where)[1], where) for i in range(len(found))]


def _target(value: Any, where: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise DataError(
            f"{where} has no class indices ({type(value).__name__}), so it is not a classification data "
            "set with one label per image. Pass another data.dataset=NAME, or data.args={...} that select class "
            "labels."
        ) from None


def _is_held_out(row: int, share: float) -> bool:
    """Whether an image is held out for the test, by a hash of its index."""
    return zlib.crc32(str(row).encode()) / 2**32 < share


def _item(found: Any, index: int, where: str) -> tuple[Any, Any]:
    try:
        with raster_only():
            image, target = found[index]
    except Exception as error:  # decoders raise various errors for malformed files
        raise DataError(
            f"{where}: image {index} cannot be read ({first_line(error)}). Repair or remove it."
        ) from None
    return image, target


def _read(found: Any, rows: Sequence[int], places: Sequence[int], where: str, i: int) -> tuple[Image.Image, int]:
    image, _ = _item(found, rows[i], where)
    if not isinstance(image, Image.Image):
        raise DataError(
            f"{where} returns {type(image).__name__} instead of images. Pass another data.dataset=NAME."
        )
    return image, places[i]
