"""Whether the accuracy of a source is plausible, or at chance, far below a stated one, or in another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fsmerge_cli.checkpoints.stated import Stated
from fsmerge_cli.common.notes import WARNING
from fsmerge_cli.common.wording import Word, worded
from fsmerge_cli.evaluation.metrics import interval

FAR_BELOW = 0.1
"""Difference from the stated accuracy, a share, from which a source is far below it."""

MAX_CLASSES = 2000
"""Largest number of classes for which another order is searched; the table of confusions has its square."""

CAUSES = (
    "Usual causes: the order of the classes or labels shifted by one (models.sources.N.labels), mean and std "
    "(models.sources.N.mean, models.sources.N.std), the range of the pixels, the wrong head "
    "(models.sources.N.head), images of another task."
)


CAUSES_OF_TEXTS = (
    "Usual causes: the order of the classes or labels shifted by one (models.sources.N.labels), the tokenizer of "
    "another model, a column of other texts (data.text_column), the wrong head (models.sources.N.head), texts of "
    "another task."
)


def worded_note(note: str, kind: Word) -> str:
    """A note on a run in the words, and with the causes, of this kind of input."""
    return note if kind == "image" else worded(note.replace(CAUSES, CAUSES_OF_TEXTS), kind)


def implausible(
    name: str, prediction: Tensor, label: Tensor, labels: Sequence[str], stated: Stated | None = None
) -> str | None:
    """A warning where a trained model is implausibly bad on its own labelled test images; None where it is not.

    prediction, label: class indices [n]; labels: class names. Implausible is an accuracy that is more than
    FAR_BELOW under the stated one; without a stated one, an accuracy whose 95 % interval holds that of guessing,
    or one that is clearly higher for another order of the classes.
    """
    count, classes = len(label), len(labels)
    if count == 0 or classes < 2:
        return None
    correct = int((prediction == label).sum())
    share, limits = correct / count, interval(correct, count)
    measured = f"{_per_cent(share)} of {count} test images ({_per_cent(limits[0])} to {_per_cent(limits[1])})"
    reasons = []
    if stated is not None:
        if share >= stated.top1 - FAR_BELOW or limits[1] >= stated.top1:
            return None
        reasons.append(f"is right on {measured}, far below the {_per_cent(stated.top1)} in {stated.file}")
    elif share < 1 and limits[0] <= (guess := chance(prediction, label, classes)):
        reasons.append(f"is right on {measured}, which is not above chance ({_per_cent(guess)})")
    other = _other_order(prediction, label, labels)
    if other is not None and not reasons:
        reasons.append(f"is right on {measured}")
    if not reasons:
        return None
    return f"{WARNING}'{name}' {reasons[0]}. {other or CAUSES}"


def chance(prediction: Tensor, label: Tensor, classes: int) -> float:
    """Accuracy, a share, of predictions [n] that do not depend on the image.

    1 / classes, or more if the predictions and the labels [n] are mostly of one class.
    """
    if int(label.min()) == int(label.max()):
        return 1 / classes
    shares = [torch.bincount(x, minlength=classes).double() / len(x) for x in (prediction, label)]
    return max(1 / classes, float((shares[0] * shares[1]).sum()))


def _other_order(prediction: Tensor, label: Tensor, labels: Sequence[str]) -> str | None:
    """A sentence on another order of the classes that is clearly better; None if there is none.

    The order is chosen on every second image and measured on the others.
    """
    classes = len(labels)
    if not 1 < classes <= MAX_CLASSES or len(label) < 4:
        return None
    chosen, kept = slice(0, None, 2), slice(1, None, 2)
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (prediction[chosen].numpy(), label[chosen].numpy()), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    order = torch.empty(classes, dtype=torch.long)
    order[torch.as_tensor(rows)] = torch.as_tensor(columns)

    def right(mapping: Tensor) -> int:
        return int((mapping[prediction[kept]] == label[kept]).sum())

    count, best = len(label[kept]), right(order)
    if 2 * best < count or interval(best, count)[0] <= interval(right(torch.arange(classes)), count)[1]:
        return None
    share = f"With its classes in another order it would be right on {_per_cent(best / count)}"
    known = next((what for what, own in _known_orders(labels) if right(own) >= best), None)
    return f"{share}: {known or 'check models.sources.N.labels'}."


def _known_orders(labels: Sequence[str]) -> list[tuple[str, Tensor]]:
    """Orders with a usual cause, as row of the head -> class."""
    rows = torch.arange(len(labels))
    place = {name: row for row, name in enumerate(labels)}
    orders = {"text (models.sources.N.labels=data)": sorted(labels)}
    if all(name.isdecimal() for name in labels):
        numbers = sorted(labels, key=lambda name: (int(name), name))
        orders["numbers (models.sources.N.labels=data_numeric)"] = numbers
    return [
        *(("its labels are shifted by one", (rows + by) % len(labels)) for by in (-1, 1)),
        *(
            (f"it was trained with its classes sorted as {what}", torch.tensor([place[name] for name in names]))
            for what, names in orders.items()
        ),
    ]


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f} %"
