"""Texts in data sets of Hugging Face's `datasets`: local folders and files, and the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.errors import ConfigError, DataError, unknown
from fsmerge_cli.common.options import FORBID, Positive, Text
from fsmerge_cli.common.shown import shown
from fsmerge_cli.data.base import DataConfig, ImageSet, LabelKind, Split, Task, Transform
from fsmerge_cli.data.hub import splits_of
from fsmerge_cli.data.text.files import TAG_NAMES, Columns, Row, has_text, table_rows
from fsmerge_cli.data.text.labels import kind_of, left_out, names_of
from fsmerge_cli.data.text.parquet import named_classes
from fsmerge_cli.data.text.text import text_set
from fsmerge_cli.models.tokenization import Side


@dataclass(frozen=True, config=FORBID)
class HuggingFaceTexts(DataConfig):
    """One data set for `datasets.load_dataset`, or a folder that `save_to_disk` wrote.

    path: a folder (of Parquet, CSV or JSON files, or written by save_to_disk), or a name on the hub, which is
    downloaded once; `{task}` stands for the task's name. config_name: a configuration of the data set.
    text_column, pair_column, label_column: as of data=text (null: found by their names). train_split, test_split:
    names of the splits; test_split null: nothing is evaluated. max_length,
    truncation: as of data=text.
    """

    kind: ClassVar[Literal["image", "text", "any"]] = "text"

    name: Literal["hf_text"] = "hf_text"
    path: Text | None = None
    config_name: Text | None = None
    text_column: Text | None = None
    pair_column: Text | None = None
    label_column: Text | None = None
    train_split: Text = "train"
    test_split: Text | None = "test"
    max_length: Positive | None = None
    truncation: Side | None = None

    def paths(self) -> Mapping[str, str]:
        """The path, which may also be a name on the hub."""
        return {} if self.path is None else {"data.path": self.path}

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Class names that the data set states, or sorted names of the labels; None if they are numbers."""
        found, _ = self._split("train", task)
        if own := self._class_names(found):
            return own
        return tuple(names_of(self._rows(found, "train", task))) or None

    def label_kind(self, task: Task) -> LabelKind | None:
        """What the labels of the training split are."""
        found, _ = self._split("train", task)
        return kind_of(self._rows(found, "train", task))

    def build(self, split: Split, task: Task, transform: Transform) -> ImageSet | None:
        """The texts of a split; with labels, only those with a label of the task. Raises DataError."""
        found, notes = self._split(split, task)
        if found is None:
            return None
        read = self._rows(found, split, task)
        rows = [row for row in read if has_text(row)]
        where = self._where(split, task)
        if not rows:
            raise DataError(f"{where} holds no texts. Pass another split or data.path=PATH.")
        more = (*notes, *left_out(task, where, read))
        return text_set(
            task, rows, where, transform, (self.max_length, self.truncation), more, self._class_names(found)
        )

    def _class_names(self, found: Any) -> tuple[str, ...]:
        """The names that the column of labels states, in their order."""
        columns = [self.label_column] if self.label_column else ["label", *TAG_NAMES]
        column = next((own for own in columns if own in found.column_names), None)
        return tuple(class_names(found.features[column]) or ()) if column else ()

    def _where(self, split: Split, task: Task) -> str:
        return f"{self._path(task)} {self.train_split if split == 'train' else self.test_split}"

    def _path(self, task: Task) -> str:
        if self.path is None:
            raise DataError("data=hf_text needs data.path=PATH, a folder or the name of a data set on the hub.")
        return self.path.replace("{task}", task.name)

    def _rows(self, found: Any, split: Split, task: Task) -> list[Row]:
        columns = Columns(self.text_column, self.pair_column, self.label_column)
        return data_set_rows(found, self._where(split, task), columns)

    def _split(self, split: Split, task: Task) -> tuple[Any, tuple[str, ...]]:
        """One split and notes; None where nothing is evaluated."""
        key, name = f"{split}_split", self.train_split if split == "train" else self.test_split
        if name is None:
            return None, ()
        path = self._path(task)
        if Path(path).expanduser().is_file():
            raise DataError(
                f"data=hf_text: {shown(path)} is a file. Pass its folder, or data=text data.train=PATH."
            )
        splits, notes = splits_of(path, self.config_name, self.name)
        if name not in splits:
            raise ConfigError(f"data.{key}: {unknown('split', name, splits)}")
        return splits[name], notes


def data_set_rows(found: Any, where: str, columns: Columns) -> list[Row]:
    """The texts of one of Hugging Face's data sets, with class indices as their names. Raises DataError."""
    values = {column: found[column][:] for column in found.column_names}
    for column in values:
        if names := class_names(found.features[column]):
            values[column] = named_classes(values[column], names)
    rows = [dict(zip(values, row)) for row in zip(*values.values())]
    return [*table_rows(where, [*enumerate(rows)], columns)]


def class_names(feature: Any) -> Sequence[str] | None:
    """The names of the classes of a column; None where it is none of classes."""
    found = getattr(getattr(feature, "feature", feature), "names", None)  # of a list: those of its items
    return [*map(str, found)] if found else None
