"""Any image-classification data set of torchvision, by the name of its class."""

from __future__ import annotations

import inspect
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
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task, numbered
from fsmerge_cli.data.matching import of_task

SPLITS: dict[str, tuple[str, str]] = {
    "CLEVRClassification": ("train", "val"),
    "FGVCAircraft": ("trainval", "test"),
    "ImageNet": ("train", "val"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "Places365": ("train-standard", "val"),
}
"""What these classes call the images to train on and those with labels for the test; others say train and test."""

UNFIT = ("VisionDataset", "DatasetFolder", "LSUN", "LSUNClass")
"""No data sets of their own; and LSUN, which unpickles a file in the working directory (its cache)."""

OURS = ("transform", "target_transform", "transforms", "download", "loader")
"""Arguments that are not the user's."""


@dataclass(frozen=True, config=FORBID)
class TorchVision(DataConfig):
    """One of the classes in torchvision.datasets, from files on disk.

    dataset: the class (MNIST, GTSRB, ImageFolder, ...). root: its folder; `{task}` in it is the task's name.
    args: further arguments of the class. train_args, test_args: those that choose a split, where `train=` or
    `split=` are not enough. download: whether torchvision may download what is not there. test_share: part that is
    kept for the evaluation where the class has no splits.
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

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """`classes` of the training split."""
        found = _names(self._open("train", task.name))
        return None if found is None else tuple(found)

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of a split that have a label of the task."""
        found, where = self._open(split, task.name), f"data=torchvision: {self.dataset}"
        classes = _classes(found, where) if task.labels is not None else [0] * len(found)
        rows, places, notes = of_task(task, classes, _names(found), where)
        if self._arguments("train", task.name) == self._arguments("test", task.name):
            kept = [i for i, row in enumerate(rows) if _held(row, self.test_share) == (split == "test")]
            rows, places = [rows[i] for i in kept], [places[i] for i in kept]
            if split == "test" and (not rows or task.labels is None):
                return None
        read = partial(_read, found, rows, places, where)
        called = partial(numbered, rows, f"{self.dataset} {split}")
        return ImageSet(
            len(rows), read, transform, all(place >= 0 for place in places), places, notes=notes, called=called
        )

    def _class(self) -> Any:
        from torchvision import datasets  # slow to import, so only where it is used

        names = [name for name in datasets.__all__ if name not in UNFIT]
        if self.dataset is None:
            raise ConfigError("data=torchvision needs data.dataset=NAME, a class of torchvision.datasets (MNIST).")
        if self.dataset not in names:
            raise ConfigError(f"data.dataset: {unknown('torchvision data set', self.dataset, names)}")
        return getattr(datasets, self.dataset)

    def _arguments(self, split: Split, task: str) -> dict[str, Any]:
        """What the class is called with; the same for both splits where it has none."""
        known = _parameters(self._class())
        own = self.train_args if split == "train" else self.test_args
        given = {**(self.args or {}), **(own or {})}
        wrong = [name for name in given if name not in known or name in OURS]
        if wrong:
            there = [name for name in known if name not in OURS]
            raise ConfigError(f"data.args: {unknown(f'argument of {self.dataset}', wrong[0], there)}")
        if "root" in known and "root" not in given:
            if self.root is None:
                raise DataError(f"data=torchvision needs data.root=PATH, the folder that {self.dataset} lies in.")
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
            raise ConfigError(f"data.download=true: torchvision cannot download {self.dataset}. Leave it out.")
        return given

    def _open(self, split: Split, task: str) -> Any:
        arguments = self._arguments(split, task)
        try:
            found = self._class()(**arguments)
            len(found)
        except Exception as error:  # every class raises its own
            shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            hint = "" if self.download or "download" not in arguments else ", or data.download=true"
            raise DataError(
                f"data=torchvision: {self.dataset}({shown}) cannot be opened ({first_line(error)}). Pass another "
                f"data.root=PATH or data.args={{...}}{hint}."
            ) from None
        return found


def _parameters(cls: Any) -> list[str]:
    """Arguments of a class, those that it hands on to its parents included."""
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
    """What the classes are called; of several names for one (ImageNet) the first."""
    names = getattr(found, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    return [str(name[0] if isinstance(name, list | tuple) else name) for name in names]


def _classes(found: Any, where: str) -> list[int]:
    """Class of every image; without reading images, where the class of the data set says them in a known way."""
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
        return int(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{where} gives no class numbers ({type(value).__name__}), so it is not for classification. "
            "Pass another data.dataset=NAME, or data.args={...} that make it so."
        ) from None


def _held(row: int, share: float) -> bool:
    """Whether an image is kept for the test; decided by its number, so that it never moves."""
    return zlib.crc32(str(row).encode()) / 2**32 < share


def _item(found: Any, index: int, where: str) -> tuple[Any, Any]:
    try:
        image, target = found[index]
    except Exception as error:  # decoders raise their own for a file that lies
        raise DataError(
            f"{where}: image {index} cannot be read ({first_line(error)}). Repair it or take it away."
        ) from None
    return image, target


def _read(found: Any, rows: Sequence[int], places: Sequence[int], where: str, i: int) -> tuple[Image.Image, int]:
    image, _ = _item(found, rows[i], where)
    if not isinstance(image, Image.Image):
        raise DataError(f"{where} gives {type(image).__name__} and no images. Pass another data.dataset=NAME.")
    return image, places[i]
