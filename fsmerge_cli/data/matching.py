"""Which images of a data set are a task's, and which row of its head each belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from fsmerge_cli.data.base import Task
from fsmerge_cli.errors import DataError

FEW = 5
"""Classes that a message names."""


def of_task(
    task: Task, classes: Sequence[int] | Sequence[str], names: Sequence[str] | None, where: str
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Rows of the images that have a label of the task; the place of each label in the task's; notes.

    classes: of every image, as numbers or names; names: what the numbers are called (None: nobody says). Labels
    are found by name, else they are numbers, else, of as many labels as classes, the order is taken, with a note.
    A task without labels, or images without any (-1), keep every image, unlabelled. where: of a message. Raises
    DataError.
    """
    if task.labels is None:
        return [*range(len(classes))], [-1] * len(classes), ()
    if any(isinstance(one, str) for one in classes):
        names = sorted({str(one) for one in classes})
        index = {name: number for number, name in enumerate(names)}
        numbers = [index[str(one)] for one in classes]
    else:
        numbers = [int(one) for one in classes]
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
    known = {_plain(name): number for number, name in enumerate(names or ())}
    if all(_plain(label) in known for label in labels):
        return {known[_plain(label)]: place for place, label in enumerate(labels)}, ()
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
    missing = [label for label in labels if _plain(label) not in known]
    classes = f"{count} classes" + (f" ({_few(names)})" if names else " without names")
    raise DataError(
        f"{where}: task '{task}' has {len(labels)} labels, of which {_few(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} none of its {classes}. Pass models.sources.N.labels=[...] or "
        "another data=..."
    )


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
