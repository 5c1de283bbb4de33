"""Texts that a Python program passes: lists, torch datasets, Hugging Face's data sets, folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.utils.data import DataLoader

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.options import FORBID, Positive
from fsmerge_cli.common.shown import brief, shown
from fsmerge_cli.data.base import ImageSet, LabelKind, Split, Task, Transform
from fsmerge_cli.data.content import Content, drained
from fsmerge_cli.data.text.files import Columns, Row, has_text, rows_of, table_rows
from fsmerge_cli.data.text.hf_text import data_set_rows
from fsmerge_cli.data.text.labels import UNLABELLED, kind_of, left_out, names_of
from fsmerge_cli.data.text.text import text_set
from fsmerge_cli.models.tokenization import Side

CONTENT = (
    "a list of texts, or of pairs of them (tuples of two strings), a pair (texts, labels), a torch Dataset of "
    "texts or of pairs (text, class index), one of Hugging Face's data sets, or a folder"
)


@dataclass(frozen=True, config=FORBID)
class TextsInMemory(Content):
    """Texts from Python, one collection for all tasks or one per task.

    content: see `Content`; a collection is a list of strings, or of tuples of two strings that are read together,
    a pair (texts, labels), a torch Dataset or DataLoader of texts or of pairs (text, class index), one of Hugging
    Face's data sets or a list of mappings (whose columns are found as in a file), or a folder or file of texts.
    max_length, truncation: as of data=text.
    """

    kind: ClassVar[Literal["image", "text", "any"]] = "text"
    why_mixed: ClassVar[str] = "the texts have no labels and no task"

    max_length: Positive | None = None
    truncation: Side | None = None

    def label_kind(self, task: Task) -> LabelKind | None:
        """What the labels of the training texts are."""
        return kind_of(self._collection(task.name, "train").rows)

    def build(self, split: Split, task: Task, transform: Transform) -> ImageSet | None:
        """The texts of one task; if they have labels, only those with a label of the task. Raises DataError."""
        found = self._collection(task.name, split)
        rows = [row for row in found.rows if has_text(row)]
        if not rows:
            if split == "test":
                return None
            raise DataError(f"{found.where} holds no texts. Pass {CONTENT}.")
        more = left_out(task, found.where, found.rows)
        return text_set(task, rows, found.where, transform, (self.max_length, self.truncation), more)

    def _collected(self, value: Any, where: str) -> TextCollection:
        return TextCollection(value, where)


class TextCollection:
    """Rows of texts. where: prefix of messages. Raises DataError if the value is no collection of texts."""

    def __init__(self, value: Any, where: str) -> None:
        self.where, self.rows = where, _rows(value, where)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labelled(self) -> bool:
        """Whether a text has a label."""
        return any(row.label not in UNLABELLED for row in self.rows)

    @cached_property
    def names(self) -> Sequence[str] | None:
        """The labels, where they are names."""
        return names_of(self.rows) or None


def _rows(value: Any, where: str) -> list[Row]:
    if isinstance(value, str | Path):
        path = Path(value).expanduser()
        if not path.exists():
            raise DataError(f"{where}: {shown(str(value))} is no folder. Pass {CONTENT}.")
        return rows_of(path, Columns())
    if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[0], str | tuple | Mapping):
        return _labelled(*value, where)
    items: Any = value.dataset if isinstance(value, DataLoader) else value
    if hasattr(items, "column_names") and hasattr(items, "features"):
        return data_set_rows(items, where, Columns())
    found = _every(items, where)
    if found and all(isinstance(item, Mapping) for item in found):
        return [*table_rows(where, [*enumerate(found)], Columns())]
    return [_row(item, f"{where}[{i}]") for i, item in enumerate(found)]


def _every(items: Any, where: str) -> list[Any]:
    """Every item. A Dataset of torch has a length and no iterator of its own, and raises no IndexError."""
    if hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        return [items[i] for i in range(len(items))]
    if isinstance(items, Iterable):
        return [*items] if hasattr(items, "__len__") else drained(items, where)
    raise DataError(f"{where}: {brief(items)} is no collection of texts. Pass {CONTENT}.")


def _labelled(texts: Any, labels: Any, where: str) -> list[Row]:
    rows = _rows(texts, where)
    own = labels.tolist() if hasattr(labels, "tolist") else [*labels]
    if len(own) != len(rows):
        raise DataError(f"{where}: there are {len(rows)} texts and {len(own)} labels.")
    return [Row(row.text, label, row.place) for row, label in zip(rows, own)]


def _row(item: Any, place: str) -> Row:
    """One item: a text, a pair of texts, or one of these with a class index."""
    if _is_text(item):
        return Row(item, None, place)
    if isinstance(item, tuple | list) and len(item) == 2:
        text, label = item
        label = label.item() if isinstance(label, Tensor) and not label.ndim else label
        if isinstance(text, str) and isinstance(label, str):
            return Row((text, label), None, place)
        if _is_text(text) and (label is None or isinstance(label, int | float)):
            return Row(text, label, place)
    raise DataError(f"{place} is no text: {brief(item)}. Pass {CONTENT}.")


def _is_text(item: Any) -> bool:
    pair = isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)
    return isinstance(item, str) or pair
