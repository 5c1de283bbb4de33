"""Match the labels of a task to the classes of a data set."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data.base import Task

MAX_LISTED = 5
"""Largest number of classes listed in a message."""

ONE_LABEL = "Several labels per image (multi-label) are not supported: one class index or name per image. "
"""Part of the messages about data sets with a list or a row of labels per image."""


def of_task(
    task: Task, classes: Sequence[Any], names: Sequence[str] | None, where: str
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Rows of the images that have a label of the task; the index of each one's label in the task; notes.

    classes: class of every image, as an index or a name (-1 or None: no class); names: the name of every class
    index (None: unknown). Labels are matched by name, else as class indices, else, if there are as many labels as
    classes, by their order; the last two add a note. Without labels of the task or of the images, every image is
    kept, unlabelled. where: the prefix of messages. Raises DataError.
    """
    if task.labels is None:
        return [*range(len(classes))], [-1] * len(classes), ()
    if any(isinstance(one, str) for one in classes):
        names = sorted({str(one) for one in classes if one is not None})
        index = {name: i for i, name in enumerate(names)}
        indices = [-1 if one is None else index[str(one)] for one in classes]
    else:
        indices = [_class_index(one, where) for one in classes]
        if all(i < 0 for i in indices):
            return [*range(len(classes))], [-1] * len(classes), ()
    count = len(names) if names else max(indices, default=-1) + 1
    place, notes = _places(task.name, task.labels, names, count, where)
    rows = [row for row, i in enumerate(indices) if i in place]
    if not rows:
        raise DataError(
            f"{where}: no image has a label of task '{task.name}' ({_listed(task.labels)}). Pass "
            "models.sources.N.labels=[...] or another data=..."
        )
    return rows, [place[indices[row]] for row in rows], notes


def _places(
    task: str, labels: Sequence[str], names: Sequence[str] | None, count: int, where: str
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Class index -> index of its label in the task, and notes."""
    found = _by_name(labels, names or ())
    if all(found):
        return {own[0]: place for place, own in enumerate(_single(found, task, labels, where))}, ()
    numeric = all(label.isdecimal() for label in labels)
    # Where the class names are numbers too, a label that is none of them must not be taken as an index.
    named_by_numbers = numeric and all(name.isdecimal() for name in names or ("",))
    if numeric and not named_by_numbers and all(int(label) < count for label in labels):
        if [*labels] == [str(number) for number in range(len(labels))] and names is None:
            return {number: number for number in range(len(labels))}, ()
        example = "" if names is None else f": {labels[0]} is '{names[int(labels[0])]}'"
        note = f"task '{task}': its labels are taken as class indices{example}"
        return {int(label): place for place, label in enumerate(labels)}, (note,)
    # If the classes have no names, the last ones may have no image.
    if (len(labels) == count and not named_by_numbers) or (names is None and len(labels) > count):
        first = "class 0" if names is None else f"'{names[0]}'"
        note = f"task '{task}': its labels are matched to the classes by their order: '{labels[0]}' is {first}"
        return {number: number for number in range(count)}, (note,)
    missing = [label for label, own in zip(labels, found) if not own]
    classes = f"{count} classes" + (f" ({_listed(names)})" if names else " without names")
    raise DataError(
        f"{where}: task '{task}' has {len(labels)} labels, of which {_listed(missing)} "
        f"{'does' if len(missing) == 1 else 'do'} not match any of the {classes}. Pass "
        "models.sources.N.labels=[...] or another data=..."
    )


def _by_name(labels: Sequence[str], names: Sequence[str]) -> list[tuple[int, ...]]:
    """The classes that match each label: by exact name, else ignoring case and underscores."""
    if [*labels] == [*names]:  # also if two classes have the same name, such as ImageNet's "crane"
        return [(number,) for number in range(len(names))]
    exact: dict[str, tuple[int, ...]] = {}
    plain: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(names):
        exact[name] = (*exact.get(name, ()), number)
        plain[_plain(name)] = (*plain.get(_plain(name), ()), number)
    return [exact.get(label) or plain.get(_plain(label), ()) for label in labels]


def _single(
    found: Sequence[tuple[int, ...]], task: str, labels: Sequence[str], where: str
) -> Sequence[tuple[int, ...]]:
    """`found` itself; DataError unless every label matches one class that no other label matches."""
    uses = Counter(found)
    if unclear := [label for label, own in zip(labels, found) if len(own) > 1 or uses[own] > 1]:
        raise DataError(
            f"{where}: the label{'s' if len(unclear) > 1 else ''} {_listed(unclear)} of task '{task}' cannot be "
            "matched to exactly one class each. Pass models.sources.N.labels=[...] spelled as in the data set."
        )
    return found


def _class_index(found: Any, where: str) -> int:
    if found is None:
        return -1
    try:
        return operator.index(int(found) if isinstance(found, float) and found.is_integer() else found)
    except TypeError:
        raise DataError(
            f"{where}: a label should be a class index or a class name, and one is {str(found)[:99]!r}. "
            f"{ONE_LABEL if isinstance(found, Collection) else ''}Pass another column or file of labels."
        ) from None


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
