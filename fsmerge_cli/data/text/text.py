"""Texts of a user's own: files or folders per task, or one for all tasks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.foreign_files import lines_of
from fsmerge_cli.common.options import FORBID, Positive, Share
from fsmerge_cli.common.options import Text as Path_
from fsmerge_cli.common.shown import listed, shown
from fsmerge_cli.data.base import DataConfig, ImageSet, LabelKind, Split, Task, Transform
from fsmerge_cli.data.images.files import beside_splits
from fsmerge_cli.data.matching import of_task
from fsmerge_cli.data.text.files import Columns, Row, has_text, parts_of, rows_of
from fsmerge_cli.data.text.folders import SUFFIXES, is_text_file, of_name, only_of_name, passed_over, refuse_shards
from fsmerge_cli.data.text.labels import (
    NOTHING,
    UNLABELLED,
    kind_of,
    labels_of,
    left_out,
    names_of,
    numbers_of,
    require_clear_labels,
    start_of,
)
from fsmerge_cli.data.text.tokens import ToTokens, require_whole
from fsmerge_cli.data.text.words import Words, word_set
from fsmerge_cli.models.tokenization import Side

SEVERAL = 20
"""A .txt file with more lines may be a list of texts."""


@dataclass(frozen=True, config=FORBID)
class Texts(DataConfig):
    """Texts in .txt (one per line), CSV, TSV, JSON Lines, Parquet and .conll, or as folders of .txt files.

    root: folder with a file or a folder per task, named after it (TASK.csv; TASK/train.csv and TASK/test.csv;
    TASK/*.txt; TASK/LABEL/*.txt), or texts for all tasks. A .txt file in a folder is one text. train, test:
    files or folders instead; `{task}` stands for the task's name. text_column, pair_column, label_column: names
    in a table or an object (null: found; a pair is two texts that are read together; words and their tags are two
    lists). test_share: share of the labelled texts held out for the evaluation where there is no test file.
    max_length: tokens of a text, the special ones included (null: as many as the sources take); longer texts are
    cut, and a note says how much. truncation: at which end, right (the last tokens) or left (null: as the
    tokenizer states it).
    """

    kind: ClassVar[Literal["image", "text", "any"]] = "text"
    why_mixed: ClassVar[str] = "no file or folder is named after a task"
    mixed_meaning: ClassVar[str] = ""

    name: Literal["text"] = "text"
    root: Path_ | None = None
    train: Path_ | None = None
    test: Path_ | None = None
    text_column: Path_ | None = None
    pair_column: Path_ | None = None
    label_column: Path_ | None = None
    test_share: Share = 0.2
    max_length: Positive | None = None
    truncation: Side | None = None

    def build(self, split: Split, task: Task, transform: Transform) -> ImageSet | None:
        """The texts of one task; None if there are no test texts."""
        path, whole = self._path(split, task)
        if path is None:
            return None
        read = _read_rows(path, Columns(self.text_column, self.pair_column, self.label_column))
        rows = [row for row in read if has_text(row)]
        labelled = [row for row in rows if row.label not in (NOTHING if task.number else UNLABELLED)]
        if whole and split == "test" and not (labelled and self.test_share):
            return None
        if whole and labelled:
            rows = [row for row in rows if self._held_out(row) == (split == "test")]
        if not rows:
            if split == "test":
                return None
            raise DataError(f"{shown(path)} holds no texts for task '{task.name}'. Pass another file or folder.")
        more = (*_files_left_out(task, path), *left_out(task, str(path), read))
        names = () if task.number else names_of(read)
        if split == "train" and self.train is self.test is None and not whole:  # a folder of both splits
            text = beside_splits(path.parent, is_text_file, "texts")
            more = (*more, *(f"{start_of(task)}{text}" for _ in text[:1]))
        return text_set(task, rows, str(path), transform, (self.max_length, self.truncation), more, names)

    def is_mixed(self, tasks: Sequence[str]) -> bool:
        """Whether the root holds texts for all tasks, and nothing is named after a task."""
        if self.root is None or self.train is not None:
            return False
        root = Path(self.root).expanduser()
        if root.is_dir() and any(of_name(root, task) for task in tasks):
            return False
        return is_text_file(root) or (root.is_dir() and any(is_text_file(path) for path in root.iterdir()))

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Sorted names of the labels; None if they are numbers, or there are none."""
        return tuple(names_of(self._training_rows(task))) or None

    def label_kind(self, task: Task) -> LabelKind | None:
        """What the labels of the training texts are."""
        return kind_of(self._training_rows(task))

    def _training_rows(self, task: Task) -> list[Row]:
        """The texts of the file of the training split. Raises DataError without any."""
        path, _ = self._path("train", task)
        if path is None:
            return []
        rows = _read_rows(path, Columns(self.text_column, self.pair_column, self.label_column))
        if not any(map(has_text, rows)):
            raise DataError(f"{shown(path)} holds no texts for task '{task.name}'. Pass another file or folder.")
        return rows

    def paths(self) -> Mapping[str, str]:
        """The files and folders."""
        found = {"data.root": self.root, "data.train": self.train, "data.test": self.test}
        return {key: path for key, path in found.items() if path is not None}

    def _path(self, split: Split, task: Task) -> tuple[Path | None, bool]:
        """Where the texts of a split are, and whether those of the other split are there as well."""
        given = self.train if split == "train" else self.test
        if given is not None:
            whole = split == "train" and self.test is None
            return _existing(Path(given.replace("{task}", task.name)).expanduser(), f"data.{split}"), whole
        if self.train is not None or self.test is not None:
            if split == "train" and self.train is None:
                raise DataError("data=text has data.test, and no data.train. Pass data.train=PATH.")
            return (_existing(Path(str(self.train).replace("{task}", task.name)).expanduser(), "data.train"), True)
        if self.root is None:
            raise DataError(
                "data=text needs data.root=FOLDER, with a file or a folder per task, or data.train=PATH ({task} "
                "stands for the task's name)."
            )
        root = _existing(Path(self.root).expanduser(), "data.root")
        own = only_of_name(root, task.name) if task.name and root.is_dir() else None
        if own is None and (task.own_data or not task.name):
            own = root
        if own is None:
            raise DataError(
                f"data=text: {shown(root)} has no texts of task '{task.name}': neither a folder of this name nor "
                f"a file with one of the suffixes {listed(SUFFIXES)}."
            )
        parts = {name: only_of_name(own, name) for name in ("train", "test")} if own.is_dir() else {}
        if any(parts.values()):
            if split == "train" and parts["train"] is None:
                raise DataError(
                    f"data=text: {shown(own)} has test texts, and no train file or folder beside them."
                )
            return parts[split], False
        refuse_shards(own)
        return own, True

    def _held_out(self, row: Row) -> bool:
        """Whether a text is a test text: by its content, so that neither order nor number matter."""
        digest = hashlib.blake2b(repr(row.text).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.test_share * 2**64


Cut = tuple[int | None, Side | None]
"""`max_length` and `truncation`."""


def text_set(
    task: Task,
    rows: Sequence[Row],
    where: str,
    transform: Transform,
    cut: Cut,
    more: Sequence[str],
    names: Sequence[str] = (),
) -> ImageSet:
    """The texts of a task among rows; if they have labels, only those with a label of the task. Raises DataError.

    where: prefix of messages. cut: tokens of a text, and the end at which longer ones are cut. more: notes on what
    was left out. names: of classes that may have no text among these.
    """
    if isinstance(transform, ToTokens) and transform.words:
        return _word_set(task, rows, where, transform.limited(cut[0], side=cut[1]), more, names)
    rows = [_as_text(row) for row in rows]
    require_clear_labels(task, [row.label for row in rows], where)
    labels = [None] * len(rows) if task.number else labels_of(rows)
    kept, places, notes = of_task(task, labels, names or None, where, "texts")
    chosen = [rows[row] for row in kept]
    values = numbers_of(chosen) if task.number else None
    for row in chosen:
        require_whole("".join(parts_of(row.text)), f"{shown(row.place)}: the text")
    notes = (*notes, *_reading_notes(task, chosen), *more)
    if isinstance(transform, ToTokens):
        transform = transform.limited(cut[0], any(isinstance(row.text, tuple) for row in chosen), cut[1])
        notes = (*notes, *_cut_notes(task, chosen, transform))
    return ImageSet(
        len(chosen),
        partial(_read, chosen, places),
        transform,
        labelled=all(place >= 0 for place in places) or bool(values and not all(map(math.isnan, values))),
        classes=places,
        notes=notes,
        title_of=partial(_title, chosen),
        values=values,
    )


def _word_set(
    task: Task, rows: Sequence[Row], where: str, transform: ToTokens, more: Sequence[str], names: Sequence[str]
) -> ImageSet:
    for row in rows:
        require_whole("".join(parts_of(row.text)), f"{shown(row.place)}: the text")
    notes = (*_reading_notes(task, rows), *more, *_cut_notes(task, rows, transform))
    return word_set(task, rows, where, transform, notes, names)


def _as_text(row: Row) -> Row:
    """Words as one text; their tags are no label of it."""
    return replace(row, text=str(row.text), label=None) if isinstance(row.text, Words) else row


def _existing(path: Path, key: str) -> Path:
    if not path.exists():
        raise DataError(f"{key}: {shown(path)} does not exist.")
    return path


def _read_rows(path: Path, columns: Columns) -> list[Row]:
    """The texts of a file or folder; a file that has not changed is read once."""
    return rows_of(path, columns) if path.is_dir() else _read_file(path, path.stat().st_mtime_ns, columns)


@lru_cache(maxsize=8)
def _read_file(path: Path, changed: int, columns: Columns) -> list[Row]:
    return rows_of(path, columns)


def _files_left_out(task: Task, path: Path) -> tuple[str, ...]:
    """A note on files in a folder that are no texts."""
    start = start_of(task)
    if path.is_dir() and (others := passed_over(path)):
        return (f"{start}files in {shown(path)} that are no texts were not used: {others}",)
    return ()


def _reading_notes(task: Task, rows: Sequence[Row]) -> tuple[str, ...]:
    """Which columns were read, and that a file of several lines was one text."""
    start = start_of(task)
    found = [f"{start}{guessed}" for guessed in dict.fromkeys(row.guessed for row in rows) if guessed]
    files = [row for row in rows if row.place.lower().endswith(".txt")]
    several = sum(len(lines_of(row.text)) > SEVERAL for row in files if isinstance(row.text, str))
    if 2 * several > len(files):
        found.append(
            f"{start}every .txt file in the folder is read as one text, and {several} of {len(files)} have more "
            f"than {SEVERAL} lines. Where a line is a text, pass the file itself"
        )
    return tuple(found)


def _cut_notes(task: Task, rows: Sequence[Row], transform: ToTokens) -> tuple[str, ...]:
    counted, cut, share = transform.cut([row.text for row in rows])
    if not cut:
        return ()
    start, where = start_of(task), " at their beginning" * (transform.side == "left")
    return (
        f"{start}{cut} of {counted} texts are longer than {transform.longest} tokens and are cut{where}, which "
        f"leaves out {100 * share:.1f} % of all tokens (data.max_length)",
    )


def _read(rows: Sequence[Row], places: Sequence[int], i: int) -> tuple[Any, int]:
    return rows[i].text, places[i]


def _title(rows: Sequence[Row], i: int) -> str:
    return rows[i].place
