"""The labels of texts and the tags of words, as files have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.shown import brief, listed, shown
from fsmerge_cli.data.base import LabelKind, Task
from fsmerge_cli.data.text.files import Row, has_text
from fsmerge_cli.data.text.tokens import require_whole
from fsmerge_cli.data.text.words import plain_tags

NOTHING = (None, "")
"""Numbers that are none."""

UNLABELLED = (*NOTHING, -1, "-1")
"""Labels that are none; -1 as in the test files of GLUE."""


def labels_of(rows: Sequence[Row]) -> list[Any]:
    """The labels as names, or as numbers where all of them are whole numbers; None (or -1) where there is none."""
    found = [None if row.label in UNLABELLED else row.label for row in rows]
    for row in rows:
        require_whole(str(row.label), f"{shown(row.place)}: the label")
        if not isinstance(row.label, str | int | type(None)) or isinstance(row.label, bool):
            several = isinstance(row.label, list | tuple | Mapping)
            raise DataError(
                f"{shown(row.place)}: a label should be a name or a whole number, is {brief(row.label)}. "
                + "Several labels per text are not supported. " * several
                + ("Pass" if several else "Save it so, or pass")
                + " data.label_column=NAME of another column."
            )
    texts = [str(label) for label in found if label is not None]
    if all(text.isdecimal() for text in texts):
        return [None if label is None else int(label) for label in found]
    return [None if label is None else str(label) for label in found]


def numbers_of(rows: Sequence[Row]) -> list[float]:
    """The labels as numbers; NaN where there is none. Raises DataError for another label, with its place."""
    found = []
    for row in rows:
        label = None if isinstance(row.label, tuple) or row.label in NOTHING else row.label
        try:
            value = math.nan if label is None else float(label)
        except (TypeError, ValueError, OverflowError):
            value = math.inf
        if isinstance(label, bool) or math.isinf(value) or (label is not None and math.isnan(value)):
            raise DataError(
                f"{shown(row.place)}: this task predicts a number, and the label is {brief(row.label)}. Repair "
                "the file, or pass data.label_column=NAME of another column."
            )
        found.append(value)
    return found


def kind_of(rows: Sequence[Row]) -> LabelKind | None:
    """What the labels of the rows that have a text are; None without any. NaN is refused later, with its place."""
    rows = [row for row in rows if has_text(row)]
    if any(isinstance(row.label, tuple) for row in rows):
        return "tags"
    labels = [row.label for row in rows if row.label not in UNLABELLED]
    labels = [label for label in labels if not (isinstance(label, float) and math.isnan(label))]
    if not all(map(_is_number, labels)):
        return "names"
    whole = all(float(label).is_integer() for label in labels)  # 0.0, 1.0: how tables with gaps keep 0 and 1
    return ("whole numbers" if whole else "numbers") if labels else None


def _is_number(label: Any) -> bool:
    """Whether a label is a finite number, or the text of one."""
    try:
        return not isinstance(label, bool) and math.isfinite(float(label))
    except (TypeError, ValueError, OverflowError):
        return False


def names_of(rows: Sequence[Row]) -> list[str]:
    """Sorted names of the labels of the rows that have a text; none where they are numbers."""
    rows = [row for row in rows if has_text(row)]
    tags = [tag for row in rows if isinstance(row.label, tuple) for tag in row.label]
    for tag in tags:
        require_whole(str(tag), "a tag")
    labels = labels_of([row for row in rows if not isinstance(row.label, tuple)])
    return sorted({own for own in [*plain_tags(tags), *labels] if isinstance(own, str)})


def require_clear_labels(task: Task, labels: Sequence[Any], where: str) -> None:
    """Raise DataError where -1, which is no label, seems to be one of the classes, as in -1 and 1."""
    found = {str(label) for label in labels if label not in (None, "")}
    if task.labels is not None and "-1" in found and len(found) == len(task.labels) > 1:
        raise DataError(
            f"{shown(where)}: -1 stands for a missing label, and with it the labels ({listed(sorted(found))}) are "
            f"as many as those of task '{task.name}'. Number the classes from 0, or remove the texts without a "
            "label."
        )


def start_of(task: Task) -> str:
    """What a note on a task begins with."""
    return f"task '{task.name}': " if task.name else ""


def left_out(task: Task, where: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Notes on rows that are no texts, and on texts with the label -1."""
    start = start_of(task)
    found = []
    if empty := sum(not has_text(row) for row in rows):
        found.append(f"{start}{empty} of {len(rows)} texts in {shown(where)} are empty: not used")
    missing = sum(row.label in UNLABELLED for row in rows)
    if not task.named and 0 < missing < len(rows):
        found.append(f"{start}{missing} of {len(rows)} texts in {shown(where)} have no label (or -1): not used")
    return tuple(found)
