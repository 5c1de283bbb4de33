"""Images stored as one array in a file: .npz, .npy, .safetensors or .pt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError, reason
from fsmerge_cli.common.foreign_files import require_regular
from fsmerge_cli.common.options import FORBID, Text
from fsmerge_cli.common.safe_pickle import plain_values
from fsmerge_cli.common.shown import listed, shortened, shown
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task
from fsmerge_cli.data.images.eight_bit import as_uint8
from fsmerge_cli.data.matching import ONE_LABEL, of_task

Layout = Literal["auto", "nchw", "nhwc"]

ANOTHER = "Pass another data.train=PATH, data.test=PATH."
SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True, config=FORBID)
class Tensors(DataConfig):
    """Arrays of images [n, C, H, W], [n, H, W, C] or [n, H, W]: uint8, uint16, bool, or floats in 0..1.

    train, test: files; `{task}` stands for the task's name; null: no such images. images_key, labels_key: names of
    the arrays in a file; labels (class indices or names, [n]) may be missing. layout: of the images, if the shape
    is ambiguous. All images are rounded to 8 bits.
    """

    name: Literal["tensors"] = "tensors"
    train: Text | None = None
    test: Text | None = None
    images_key: Text = "images"
    labels_key: Text = "labels"
    layout: Layout = "auto"

    def paths(self) -> Mapping[str, str]:
        """The training and the test file."""
        found = {"data.train": self.train, "data.test": self.test}
        return {key: path for key, path in found.items() if path is not None}

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Sorted label names of the training file, else of the test file; None if labels are indices."""
        for split in ("train", "test"):
            path = self._path("train" if split == "train" else "test", task.name)
            labels = None if path is None else self._content(path)[1]
            if labels is not None and labels and isinstance(labels[0], str):
                return tuple(sorted(set(map(str, labels))))
        return None

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of one file; if it has labels, only those with a label of the task."""
        path = self._path(split, task.name)
        if path is None and split == "test":
            return None
        if path is None:
            raise DataError(
                "data=tensors needs data.train=PATH (.npz, .npy, .safetensors or .pt; {task} stands for the "
                "task's name), or data.images_per_task=0."
            )
        images, labels = self._content(path)
        if not images.size:
            raise DataError(f"{path} holds no images. Pass another data.{split}=PATH.")
        rows, places = [*range(len(images))], [-1] * len(images)
        notes: tuple[str, ...] = ()
        if labels is not None:
            rows, places, notes = of_task(task, labels, None, str(path))
        labelled = all(place >= 0 for place in places)
        read, title_of = partial(_read, images, rows, places), partial(_title, rows, str(path))
        return ImageSet(len(rows), read, transform, labelled, places, notes=notes, title_of=title_of)

    def _path(self, split: Split, task: str) -> Path | None:
        path = self.train if split == "train" else self.test
        return None if path is None else Path(path.replace("{task}", task)).expanduser()

    def _content(self, path: Path) -> tuple[Any, list[int] | list[str] | None]:
        """Images as a uint8 array [n, H, W] or [n, H, W, C], and labels [n], if the file has any."""
        arrays = _load(path)
        name = next(iter(arrays)) if len(arrays) == 1 else self.images_key
        if name not in arrays:
            raise DataError(
                f"{path} has no array '{name}'. It holds {listed(sorted(arrays), 'nothing')}: pass "
                "data.images_key=NAME."
            )
        images = image_array(arrays[name], str(path), self.layout)
        labels = arrays.get(self.labels_key) if self.labels_key != name else None
        if labels is None:
            return images, None
        if labels.shape != (len(images),) or labels.dtype.kind not in "iuU":
            several = ONE_LABEL if labels.ndim == 2 and labels.shape[1] > 1 else ""
            raise DataError(
                f"{path}: '{self.labels_key}' should be {len(images)} class indices or names, one per image, and "
                f"is {labels.dtype} {list(labels.shape)}. {several}Pass data.labels_key=NAME, or another file."
            )
        return images, labels.tolist()


def _load(path: Path) -> dict[str, Any]:
    """Arrays by name; loading a file never runs code."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: should be one of {', '.join(SUFFIXES)}. {ANOTHER}")
    try:
        found = _read_file(path)
        if isinstance(found, Tensor):
            found = {"images": found}
        elif isinstance(found, list | tuple):
            found = dict(zip(("images", "labels"), found))
        return {str(name): _array(value) for name, value in dict(found).items() if not isinstance(value, str)}
    except Exception as error:  # readers raise various errors for malformed files
        unsafe = "weights_only" in str(error) or "allow_pickle" in str(error)  # these advise to run its code
        cause = "it is damaged, or holds more than arrays and plain values" if unsafe else reason(error)
        raise DataError(f"{shown(path)} cannot be read ({shortened(cause)}). {ANOTHER}") from None


def _read_file(path: Path) -> Any:
    require_regular(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if suffix in (".npz", ".npy"):
        found = np.load(path, allow_pickle=False)
        return {name: found[name] for name in found.files} if suffix == ".npz" else {"images": found}
    return plain_values(path)


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def image_array(images: Any, where: str, layout: Layout = "auto") -> Any:
    """An array of images as uint8, [n, H, W] or [n, H, W, C]. where: prefix of messages. Raises DataError."""
    return _uint8(_channels_last(images, layout, where), where)


def _channels_last(images: Any, layout: Layout, path: str) -> Any:
    shape = list(images.shape)
    if len(shape) == 3:
        return images
    first, last = (len(shape) == 4 and shape[axis] in (1, 3) for axis in (1, -1))
    if layout != "auto":
        first, last = first and layout == "nchw", last and layout == "nhwc"
    if first and last:
        raise DataError(
            f"{path}: images of shape {shape} may be [n, C, H, W] or [n, H, W, C]. Pass data.layout=nchw or "
            "data.layout=nhwc."
        )
    if not first and not last:
        where = "" if layout == "auto" else f" with data.layout={layout}"
        raise DataError(
            f"{path}: images should be [n, C, H, W], [n, H, W, C] or [n, H, W], with 1 or 3 channels{where}, and "
            f"are {shape}. Reshape them."
        )
    images = np.moveaxis(images, 1, -1) if first else images
    return images[..., 0] if images.shape[-1] == 1 else images


def _uint8(images: Any, path: str) -> Any:
    try:
        return as_uint8(images)
    except DataError as error:
        raise DataError(f"{path}: images {error}.") from None


def _read(images: Any, rows: Sequence[int], places: Sequence[int], i: int) -> tuple[Image.Image, int]:
    return Image.fromarray(np.ascontiguousarray(images[rows[i]])), places[i]


def _title(rows: Sequence[int], path: str, i: int) -> str:
    return f"{path} [{rows[i]}]"
