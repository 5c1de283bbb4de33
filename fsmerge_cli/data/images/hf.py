"""Data sets of Hugging Face's `datasets`: local folders and files, and the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError, DataError, first_line, unknown
from fsmerge_cli.common.options import FORBID, Text
from fsmerge_cli.common.shown import shown
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task, row_title
from fsmerge_cli.data.hub import splits_of
from fsmerge_cli.data.images.decode import open_image
from fsmerge_cli.data.images.files import compared
from fsmerge_cli.data.matching import of_task


@dataclass(frozen=True, config=FORBID)
class HuggingFace(DataConfig):
    """One data set for `datasets.load_dataset`, or a folder that `save_to_disk` wrote.

    path: a folder (of images in class folders, of Parquet files, or written by save_to_disk), or a name on the
    hub, which is downloaded once; `{task}` stands for the task's name. config_name: a configuration of the data
    set. image_column, label_column: null takes the only column of that type (for labels, `label` first).
    train_split, test_split: names of the splits; test_split null: nothing is evaluated.
    """

    name: Literal["hf"] = "hf"
    path: Text | None = None
    config_name: Text | None = None
    image_column: Text | None = None
    label_column: Text | None = None
    train_split: Text = "train"
    test_split: Text | None = "test"

    def paths(self) -> Mapping[str, str]:
        """The path, which may also be a name on the hub."""
        return {} if self.path is None else {"data.path": self.path}

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Class names of the label column; None if it has none."""
        found = self._open(self.train_split, task.name)
        column = self._label_column(found)
        names = None if column is None else getattr(found.features[column], "names", None)
        return tuple(names) if names else None

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of a split; with a label column, only those with a label of the task."""
        split_name = self.train_split if split == "train" else self.test_split
        if split_name is None:
            return None
        splits, notes = self._splits(task.name)
        found = self._one(splits, split_name)
        image, label = self._image_column(found), self._label_column(found)
        where = f"data=hf: {self.path}"
        rows, places = [*range(len(found))], [-1] * len(found)
        if label is not None:
            names = getattr(found.features[label], "names", None)
            rows, places, more = of_task(task, list(found[label]), names, where)
            notes += more
        notes += _passed_over(splits, image, self._path(task.name), task.name)
        labelled = all(place >= 0 for place in places)
        title_of = partial(row_title, rows, f"{self.path} {split_name}")
        read = partial(_read, _images(found, image), image, rows, places, where)
        return ImageSet(len(rows), read, transform, labelled, places, notes=notes, title_of=title_of)

    def _open(self, split: str, task: str) -> Any:
        return self._one(self._splits(task)[0], split)

    def _path(self, task: str) -> str:
        if self.path is None:
            raise DataError("data=hf needs data.path=PATH, a folder or the name of a data set on the hub.")
        return self.path.replace("{task}", task)

    def _splits(self, task: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """All splits by name, and notes."""
        return splits_of(self._path(task), self.config_name, self.name)

    def _one(self, splits: Mapping[str, Any], split: str) -> Any:
        if split not in splits:
            which = "train_split" if split == self.train_split else "test_split"
            raise ConfigError(f"data.{which}: {unknown('split', split, splits)}")
        return splits[split]

    def _image_column(self, found: Any) -> str:
        if self.image_column is not None:
            return self._known(found, self.image_column, "image_column")
        columns = [name for name, feature in found.features.items() if type(feature).__name__ == "Image"]
        if len(columns) != 1:
            raise ConfigError(
                f"data.image_column: {self.path} has {len(columns)} image columns. Pass one of its columns: "
                f"{', '.join(found.column_names)}."
            )
        return str(columns[0])

    def _label_column(self, found: Any) -> str | None:
        if self.label_column is not None:
            return self._known(found, self.label_column, "label_column")
        columns = [name for name, feature in found.features.items() if type(feature).__name__ == "ClassLabel"]
        if len(columns) > 1 and "label" not in columns:
            raise ConfigError(
                f"data.label_column: {self.path} has several label columns. Pass one of: {', '.join(columns)}."
            )
        return "label" if "label" in found.column_names else (str(columns[0]) if columns else None)

    def _known(self, found: Any, column: str, key: str) -> str:
        if column not in found.column_names:
            raise ConfigError(f"data.{key}: {unknown('column', column, found.column_names)}")
        return column


def _passed_over(splits: Mapping[str, Any], column: str, path: str, task: str) -> tuple[str, ...]:
    """Notes on files of a local folder of images that `datasets` does not read. Raises DataError."""
    import datasets

    folder = Path(path).expanduser()
    first = next(iter(splits.values()))
    if not folder.is_dir() or getattr(first.info, "builder_name", None) != "imagefolder":
        return ()
    used = []
    for found in splits.values():
        paths = found.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        used += [own["path"] for own in paths[column] if own and own["path"]]
    return compared(folder, used, task, "data=hf")


def _images(found: Any, column: str) -> Any:
    """Only the image column, as paths or bytes, which are decoded here."""
    import datasets

    return found.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _read(
    found: Any, column: str, rows: Sequence[int], places: Sequence[int], where: str, i: int
) -> tuple[Image.Image, int]:
    try:
        image = _decoded(found[rows[i]][column])
    except Exception as error:  # decoders raise various errors for malformed files
        cause = first_line(error)
        raise DataError(f"{where}: image {rows[i]} cannot be read ({cause}). Repair or remove it.") from None
    return image, places[i]


def _decoded(item: Any) -> Image.Image:
    """An image of its bytes or its file; addresses, which the library would download from, are refused."""
    content, path = (item or {}).get("bytes"), (item or {}).get("path")
    if content is not None:
        return open_image(BytesIO(content))
    if path is None:
        raise DataError("it has neither bytes nor a file")
    if "://" in path:
        raise DataError(f"{shown(path)} is an address; download it, or embed the images in the data set")
    return open_image(Path(path))
