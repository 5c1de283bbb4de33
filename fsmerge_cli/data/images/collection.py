"""A collection of images from Python as rows with an image and a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
    default_convert,
)

from fsmerge_cli.common.errors import DataError, reason
from fsmerge_cli.common.shown import brief, shown
from fsmerge_cli.data.content import code_of_others, drained
from fsmerge_cli.data.images.decode import open_image
from fsmerge_cli.data.images.files import images as image_files
from fsmerge_cli.data.images.tensors import Layout, image_array

IMAGES = ("image", "img", "images", "pixels", "pixel_values")
LABELS = ("label", "labels", "fine_label", "target", "class")
"""Keys of an item that is a mapping, as those of Hugging Face's datasets."""

CONTENT = (
    "a tensor or array of images, a pair (images, labels), a list of images or paths, a folder, or a torch "
    "Dataset or DataLoader"
)


class Collection:
    """Rows of images. where: prefix of messages. layout: of arrays whose shape is ambiguous.

    Raises DataError if the value is no collection of images.
    """

    def __init__(self, value: Any, where: str, layout: Layout = "auto") -> None:
        self.where, self._layout = where, layout
        self._items = value = _items(value, where)
        pair = isinstance(value, tuple) and len(value) == 2 and not all(map(_is_image, value))
        self._arrays = self._array(value[0] if pair else value)
        self._own_labels = _labels(value[1], where) if pair else None
        if pair and self._arrays is None:
            self._items = _items(value[0], where)
        self._count = len(self._items if self._arrays is None else self._arrays)  # once: it must not change
        if self._own_labels is not None and len(self._own_labels) != len(self):
            raise DataError(f"{where}: there are {len(self)} images and {len(self._own_labels)} labels.")

    def _array(self, value: Any) -> Any:
        """Images as uint8, [n, H, W] or [n, H, W, C]; None if they are not in one array."""
        if np.ma.isMaskedArray(value):
            raise DataError(
                f"{self.where}: a masked array has pixels without a value. Fill them: array.filled(0)."
            )
        if isinstance(value, Tensor):
            value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
        return image_array(value, self.where, self._layout) if isinstance(value, np.ndarray) else None

    def __len__(self) -> int:
        return self._count

    def image(self, row: int) -> Image.Image:
        """The image of a row. Raises DataError."""
        if self._arrays is not None:
            return Image.fromarray(np.ascontiguousarray(self._arrays[row]))
        with code_of_others(f"{self.where}[{row}]"):
            return self._as_image(self._parts(row)[0], f"{self.where}[{row}]")

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        if self._own_labels is not None or not len(self) or self._arrays is not None:
            return self._own_labels is not None
        return self._label(0) is not None

    @cached_property
    def labels(self) -> list[Any]:
        """The label of every row, an index or a name. Raises DataError."""
        if self._own_labels is not None:
            return self._own_labels
        stated = _stated(self._items, "targets")  # of torchvision's datasets: without reading the images
        if stated is not None and _stated(self._items, "target_transform") is None:
            found = _labels(stated, self.where)
            return [found[row] for row in _rows_of(self._items, len(found))]
        return _labels([self._label(row) for row in range(len(self))], self.where)

    @property
    def names(self) -> Sequence[str] | None:
        """The names of the class indices, where the collection states them or its labels are names."""
        features = _stated(self._items, "features")  # of Hugging Face's datasets
        for key in LABELS:
            if isinstance(features, Mapping) and (found := getattr(features.get(key), "names", None)):
                return [*map(str, found)]
        if isinstance(found := _stated(self._items, "classes"), list | tuple):
            return [*map(str, found)]
        if self.labelled and any(isinstance(label, str) for label in self.labels):
            return sorted({*map(str, self.labels)})
        return None

    def _label(self, row: int) -> Any:
        with code_of_others(f"{self.where}[{row}]"):
            return self._parts(row)[1]

    def _parts(self, row: int) -> tuple[Any, Any]:
        """Image and label (None: it has none) of a row."""
        item = self._items[row]
        if isinstance(item, Mapping):
            image = next((item[key] for key in IMAGES if key in item), None)
            if image is None:
                keys = ", ".join(map(shown, map(str, item)))
                raise DataError(f"{self.where}[{row}]: none of the keys {keys} is {', '.join(IMAGES)}.")
            return image, next((item[key] for key in LABELS if key in item), None)
        if isinstance(item, list | tuple) and item and _is_image(item[0]):
            return item[0], item[1] if len(item) > 1 else None
        return item, None

    def _as_image(self, value: Any, where: str) -> Image.Image:
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, str | Path):
            try:
                return open_image(Path(value).expanduser())
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"the image {shown(str(value))} cannot be read ({reason(error)}).") from None
        if isinstance(value, Tensor | np.ndarray):
            return Image.fromarray(np.ascontiguousarray(self._single(value, where)[0]))
        raise DataError(f"{where} is no image: {brief(value)}. Pass {CONTENT}.")

    def _single(self, value: Any, where: str) -> Any:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        if array.ndim not in (2, 3):
            raise DataError(f"{where} is no image: its shape is {list(array.shape)}, not [C, H, W] or [H, W, C].")
        return image_array(array[None], where, self._layout)


def _is_image(value: Any) -> bool:
    """Whether a value may be one image; a string is a path."""
    return isinstance(value, Image.Image | str | Path) or getattr(value, "ndim", 0) in (2, 3)


def _items(value: Any, where: str) -> Any:
    """Something with a length and rows."""
    if isinstance(value, str | Path):
        folder = Path(value).expanduser()
        if not folder.is_dir():
            raise DataError(f"{where}: {shown(str(value))} is no folder. Pass {CONTENT}.")
        return image_files(folder)
    if isinstance(value, DataLoader):
        # A collate function of the user's own may change the images, so that its batches are what is meant.
        plain = value.collate_fn in (default_collate, default_convert) and _has_rows(value.dataset)
        value = _sampled(value) if plain else _batches(value, where)
    if _has_rows(value) and not isinstance(value, Mapping):
        return value
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return drained(value, where)
    raise DataError(f"{where}: {brief(value)} is no collection of images. Pass {CONTENT}.")


def _has_rows(value: Any) -> bool:
    """Whether rows are read by their number; a stream (torch's IterableDataset) has none, even with a length."""
    rows = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return rows and not isinstance(value, IterableDataset)


def _sampled(loader: DataLoader[Any]) -> Any:
    """The dataset of a loader, or the rows that its sampler chooses, each once and in the dataset's order."""
    sampler: Any = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) >= len(sampler.data_source)
    )
    batches = loader.batch_sampler
    if batches is None or (type(batches) is BatchSampler and batches.sampler is sampler):
        if whole and sampler.data_source is loader.dataset:
            return loader.dataset
        chosen: Iterable[Any] = sampler
    else:
        chosen = (row for batch in batches for row in batch)
    with torch.random.fork_rng(devices=[]):  # a merge leaves the global generator as it is
        rows = sorted({int(row) for row in chosen})
    return Subset(loader.dataset, rows)


def _batches(loader: DataLoader[Any], where: str) -> list[Any]:
    """The items of all batches: images, pairs of images and labels, or mappings."""
    found: list[Any] = []
    for batch in drained(loader, where):
        if isinstance(batch, Mapping):
            found += [dict(zip(batch, parts)) for parts in zip(*batch.values())]
        else:
            found += zip(*(batch if isinstance(batch, list | tuple) else (batch,)))
    return found


def _stated(items: Any, name: str) -> Any:
    """An attribute of a dataset; of a subset, that of the dataset behind it."""
    return _stated(items.dataset, name) if isinstance(items, Subset) else getattr(items, name, None)


def _rows_of(items: Any, count: int) -> Sequence[int]:
    """The rows of the dataset behind a subset, of which it has `count`; all of them where it is no subset."""
    if not isinstance(items, Subset):
        return range(count)
    behind = _rows_of(items.dataset, count)
    return [behind[row] for row in items.indices]


def _labels(values: Any, where: str) -> list[Any]:
    """Class indices and names as plain values; -1 for None."""
    found = values.tolist() if hasattr(values, "tolist") else [*values]
    plain: list[Any] = []
    for label in found:
        scalar = isinstance(label, Tensor | np.generic | np.ndarray) and label.ndim == 0
        value = label.item() if scalar else -1 if label is None else label
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise DataError(f"{where}: the label {brief(label)} is no class index and no name.")
        plain.append(value)
    return plain
