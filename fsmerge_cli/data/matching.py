"""Match the labels of a task to the classes of a data set; whatever is not an equal name is noted."""

from __future__ import annotations

import operator
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.shown import brief, listed
from fsmerge_cli.data.base import Task

MAX_LISTED = 5
"""Largest number of classes listed in a message."""

ONE_LABEL = "Several labels per image (multi-label) are not supported: one class index or name per image. "
"""Part of the messages about data sets with a list or a row of labels per image."""


def of_task(
    task: Task, classes: Sequence[Any], names: Sequence[str] | None, where: str, items: str = "images"
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Rows of the images that have a label of the task; the index of each one's label in the task; notes.

    classes: class of every image, as an index or a name (-1 or None: no class); names: the name of every class
    index, or further names (None: unknown). Labels are matched by name, else as class indices, else, if there are
    as many labels as classes, by their order. A match of names that are not equal, and every other match, adds a
    note. Without labels of the task or of the images, every image is kept, unlabelled. where: the prefix of
    messages. items: what they call the images. Raises DataError.
    """
    if task.labels is None:
        return [*range(len(classes))], [-1] * len(classes), ()
    if any(isinstance(one, str) for one in classes):
        names = sorted({*(names or ()), *(str(one) for one in classes if one is not None)})
        index = {name: i for i, name in enumerate(names)}
        indices = [-1 if one is None else index[str(one)] for one in classes]
    else:
        indices = [_class_index(one, where) for one in classes]
        if all(i < 0 for i in indices):
            return [*range(len(classes))], [-1] * len(classes), ()
    place, notes = _places(task, task.labels, names, sorted({i for i in indices if i >= 0}), where)
    rows = [row for row, i in enumerate(indices) if i in place]
    if not rows:
        raise DataError(
            f"{where}: none of the {items} has a label of task '{task.name}' ({_listed(task.labels)}). Pass "
            "models.sources.N.labels=[...] or another data=..."
        )
    if task.named and len(rows) < len(classes):
        count = len(classes) - len(rows)
        notes += (f"task '{task.name}': {count} of {len(classes)} {items} have none of its labels: not used",)
    return rows, [place[indices[row]] for row in rows], notes


def of_folders(task: Task, folders: Sequence[str]) -> tuple[list[int | None], tuple[str, ...]]:
    """The index of each class folder's label in the task, None where it has not exactly one; notes."""
    labels = task.labels or ()
    exact = {*folders} & {*labels}
    found = [
        own if name in exact else tuple(row for row in own if labels[row] not in exact)
        for name, own in zip(folders, _by_name(folders, labels))
    ]
    uses = Counter(found)
    rows = [own[0] if len(own) == 1 and uses[own] == 1 else None for own in found]
    pairs = [(labels[row], name) for row, name in zip(rows, folders) if row is not None]
    return rows, _notes_of_names(task, pairs, [])


def _places(
    task: Task, labels: Sequence[str], names: Sequence[str] | None, seen: Sequence[int], where: str
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Class index -> index of its label in the task, and notes. seen: the class indices that images have."""
    if names and seen and seen[-1] >= len(names):
        raise DataError(
            f"{where}: a class index is {seen[-1]}, and there are names of {len(names)} classes "
            f"({_listed(names)}), the last of index {len(names) - 1}. Correct the labels or the names."
        )
    count = len(names) if names else max(seen, default=-1) + 1
    found = _by_name(labels, names or ())
    if names and all(found):
        place = {own[0]: place for place, own in enumerate(_single(found, task.name, labels, where))}
        pairs = [(labels[row], names[index]) for index, row in place.items()]
        return place, _notes_of_names(task, pairs, [names[i] for i in seen if i not in place])
    if names and (rest := _without_images(labels, names, found)) is not None:
        return rest, ()
    numeric = all(label.isdecimal() for label in labels)
    # Where the class names are numbers too, a label that is none of them must not be taken as an index.
    named_by_numbers = numeric and all(name.isdecimal() for name in names or ("",))
    if numeric and not named_by_numbers and all(int(label) < count for label in labels):
        return _indices(task, labels, names, seen, where)
    # If the classes have no names, the last ones may have no image.
    contradicted = any(own and own != (row,) for row, own in enumerate(found))
    if (len(labels) == count and not (named_by_numbers or contradicted)) or (
        names is None and len(labels) > count
    ):
        first = "class 0" if names is None else f"'{names[0]}'"
        rows = {number: number for number in range(count)}
        if names is None and [*labels] == [str(row) for row in range(len(labels))]:
            return rows, ()  # the index of a class is the row of the head, and the last rows have no image
        note = (
            f"task '{task.name}': its labels are matched to the classes by their order: '{labels[0]}' is {first}"
        )
        return rows, (note,)
    missing = [label for label, own in zip(labels, found) if not own]
    classes = f"{count} classes" + (f" ({_listed(names)})" if names else " without names")
    raise DataError(
        f"{where}: task '{task.name}' has {len(labels)} labels, of which {_listed(missing)} "
        f"{'does' if len(missing) == 1 else 'do'} not match any of the {classes}. Pass "
        "models.sources.N.labels=[...] or another data=..."
    )


def _without_images(
    labels: Sequence[str], names: Sequence[str], found: Sequence[tuple[int, ...]]
) -> dict[int, int] | None:
    """Class index -> row of its label, where every class has the very name of a label and others have no image.

    Numbers may be indices, which are matched otherwise.
    """
    if not {*names} <= {*labels} or len({*labels}) < len(labels) or all(name.isdecimal() for name in names):
        return None
    return {own[0]: row for row, own in enumerate(found) if own}


def _indices(
    task: Task, labels: Sequence[str], names: Sequence[str] | None, seen: Sequence[int], where: str
) -> tuple[dict[int, int], tuple[str, ...]]:
    """The labels as class indices. Raises DataError where the classes seem to be numbered from 1."""
    place = {int(label): row for row, label in enumerate(labels)}
    rows = [*labels] == [str(row) for row in range(len(labels))]
    if rows and names is None and [*seen] == [*range(1, len(labels) + 1)]:
        raise DataError(
            f"{where}: the classes of task '{task.name}' are numbered from 1 to {len(labels)}, the rows of its "
            f"head from 0 to {len(labels) - 1}. Number the classes from 0, or pass "
            f"models.sources.N.labels=['1',...,'{len(labels)}']."
        )
    notes = []
    if names is not None:
        notes.append(
            f"task '{task.name}': its labels are taken as class indices: {labels[0]} is '{names[int(labels[0])]}'"
        )
    elif not rows:
        notes.append(f"task '{task.name}': its labels are taken as class indices")
    if not task.named:
        notes += _left_out(task, [str(i) if names is None else names[i] for i in seen if i not in place])
    return place, tuple(notes)


def _notes_of_names(task: Task, pairs: Sequence[tuple[str, str]], others: Sequence[str]) -> tuple[str, ...]:
    """Notes on labels that are matched to class names.

    pairs: label and class name of each match; others: class names that no label matches.
    """
    notes = []
    if loose := [(label, name) for label, name in pairs if label != name]:
        few = ", ".join(f"'{label}' is '{name}'" for label, name in loose[:MAX_LISTED])
        notes.append(
            f"task '{task.name}': {len(loose)} of its labels are matched to class names that are spelled "
            f"differently: {few}{', ...' if len(loose) > MAX_LISTED else ''}"
        )
    names = [name for _, name in pairs]
    if not task.named:
        if sorted(names) != (ordered := by_number(names)):
            notes.append(
                f"task '{task.name}': its head has no class names, so the class named '{ordered[-1]}' is taken as "
                f"row {int(ordered[-1])} of the head. If it was trained with the names sorted as text "
                f"({_listed(sorted(names))}), as torchvision's ImageFolder does, pass models.sources.N.labels=data"
            )
        notes += _left_out(task, others)
    return tuple(notes)


def _left_out(task: Task, classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    what = f"class{'es' if len(classes) > 1 else ''} {_listed(classes)}"
    return [
        f"task '{task.name}': its head has no class names and {len(task.labels or ())} rows; the images of {what} "
        "are left out"
    ]


def by_number(names: Sequence[str]) -> list[str]:
    """Names sorted as numbers, if all of them are numbers; else as text.

    >>> by_number(["10", "9", "0"]), by_number(["b", "10", "9"])
    (['0', '9', '10'], ['10', '9', 'b'])
    """
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def _by_name(labels: Sequence[str], names: Sequence[str]) -> list[tuple[int, ...]]:
    """The classes that match each label: by exact name, else ignoring case, underscores, spaces, leading zeros."""
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
    """A name as names are compared: "Snow_Leopard" and "snow leopard" are the same, so are "01" and "1"."""
    plain = " ".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split())
    return str(int(plain)) if plain.isdecimal() else plain


def alike_note(task: str, labels: Sequence[str]) -> tuple[str, ...]:
    """A note where names of classes are one name to a reader, so that a slip may have made two classes of one."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(labels):
        seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        groups.setdefault(_plain(seen), []).append(name)
    if not (same := [own for own in groups.values() if len(own) > 1]):
        return ()
    few = "; ".join(" and ".join(brief(name) for name in own) for own in same[:MAX_LISTED])
    return (
        f"task '{task}': names that differ only in case, spaces, underscores, leading zeros, forms of letters or "
        f"invisible characters are classes of their own: {few}{'; ...' if len(same) > MAX_LISTED else ''}. If "
        "they are one class, give it one name",
    )


def _listed(names: Sequence[str]) -> str:
    return listed(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
