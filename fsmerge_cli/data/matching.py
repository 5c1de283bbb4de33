"""Which images of a data set are a task's, and which row of its head each belongs to."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data.base import Task

FEW = 5
"""Classes that a message names."""


def of_task(
    task: Task, classes: Sequence[Any], names: Sequence[str] | None, where: str
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Rows of the images that have a label of the task; the place of each label in the task's; notes.

    classes: of every image, as numbers or names (-1 or None: it has none); names: what the numbers are called
    (None: nobody says). Labels are found by name, else they are numbers, else, of as many labels as classes, the
    order is taken, with a note. A task without labels, or images without any, keep every image, unlabelled.
    where: of a message. Raises DataError.
    """
    if task.labels is None:
        return [*range(len(classes))], [-1] * len(classes), ()
    if any(isinstance(one, str) for one in classes):
        names = sorted({str(one) for one in classes if one is not None})
        index = {name: number for number, name in enumerate(names)}
        numbers = [-1 if one is None else index[str(one)] for one in classes]
    else:
        numbers = [_number(one, where) for one in classes]
        if all(number < 0 for number in numbers):
            return [*range(len(classes))], [-1] * len(classes), ()
    count = len(names) if names else max(numbers, default=-1) + 1
    place, notes = _places(task.name, task.labels, names, count, where)
    rows = [row for row, number in enumerate(numbers) if number in place]
    if not rows:
        raise DataError(
            f"{where}: no image has a label of task '{task.name}' ({_few(task.labels)}). Pass "
            "models.sources.N.labels=[...] or another data=..."
        )
    return rows, [place[numbers[row]] for row in rows], notes


def _places(
    task: str, labels: Sequence[str], names: Sequence[str] | None, count: int, where: str
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Number of a class -> place of its label, and what is to be noted."""
    found = _by_name(labels, names or ())
    if all(found):
        return {own[0]: place for place, own in enumerate(_single(found, task, labels, where))}, ()
    numbers = all(label.isdecimal() for label in labels)
    strange = numbers and all(name.isdecimal() for name in names or ("",))  # other numbers, and not by chance
    if numbers and not strange and all(int(label) < count for label in labels):
        if [*labels] == [str(number) for number in range(len(labels))] and names is None:
            return {number: number for number in range(len(labels))}, ()
        said = "" if names is None else f": {labels[0]} is '{names[int(labels[0])]}'"
        note = f"task '{task}': its labels are taken as numbers of classes{said}"
        return {int(label): place for place, label in enumerate(labels)}, (note,)
    # Without names, the last classes may have no image.
    if (len(labels) == count and not strange) or (names is None and len(labels) > count):
        first = "class 0" if names is None else f"'{names[0]}'"
        note = f"task '{task}': its labels are matched to the classes by their order: '{labels[0]}' is {first}"
        return {number: number for number in range(count)}, (note,)
    missing = [label for label, own in zip(labels, found) if not own]
    classes = f"{count} classes" + (f" ({_few(names)})" if names else " without names")
    raise DataError(
        f"{where}: task '{task}' has {len(labels)} labels, of which {_few(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} none of its {classes}. Pass models.sources.N.labels=[...] or "
        "another data=..."
    )


def _by_name(labels: Sequence[str], names: Sequence[str]) -> list[tuple[int, ...]]:
    """The classes that each label may be: those of exactly its name, else those of its plain form."""
    if [*labels] == [*names]:  # also where one name stands for two classes, as ImageNet's "crane"
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
    """The same, where every label is one class, and no other label is; else DataError."""
    asked = Counter(found)
    if unclear := [label for label, own in zip(labels, found) if len(own) > 1 or asked[own] > 1]:
        raise DataError(
            f"{where}: of task '{task}' the label{'s' if len(unclear) > 1 else ''} {_few(unclear)} cannot be told "
            "apart among the classes. Pass models.sources.N.labels=[...] that are written as the data set has "
            "them."
        )
    return found


def _number(found: Any, where: str) -> int:
    if found is None:
        return -1
    try:
        return operator.index(int(found) if isinstance(found, float) and found.is_integer() else found)
    except TypeError:
        raise DataError(
            f"{where}: a label should be the number of a class or its name, and one is {str(found)[:99]!r}. Pass "
            "another column or file of labels."
        ) from None


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
