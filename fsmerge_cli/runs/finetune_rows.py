"""The training images of `fsmerge finetune`: readable, with a label, without duplicates and test images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean, pstdev

from torch import nn

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.common.shown import shortened, shown
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.draw import READ_BATCH, digest
from fsmerge_cli.data.reading import combined_error, read_valid
from fsmerge_cli.data.sampling import MAX_EXAMPLES
from fsmerge_cli.models.head import Head
from fsmerge_cli.training.criterion import NO_LABEL

Label = int | float | tuple[int, ...]
"""A class, a number (NaN: none), or the classes of the words of a text (-1: none)."""

LARGEST = 1e30
"""Numbers from here on are near the end of fp32."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows of the usable training images, in random order, and those of the images that are left out.

    digests: row -> digest of the pixels and label. unreadable: row -> error. in_test: rows identical to a test
    image. duplicates: rows identical to another training image. unlabelled: rows without a number or a tag, where
    these are learned. relabelled: by the row of a training image, the first of its duplicates with another label,
    and this label.
    """

    digests: dict[int, tuple[bytes, Label]] = field(default_factory=dict)
    unreadable: dict[int, DataError] = field(default_factory=dict)
    in_test: list[int] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)
    unlabelled: list[int] = field(default_factory=list)
    relabelled: dict[int, tuple[int, Label]] = field(default_factory=dict)

    def notes(self, images: ImageSet, labels: Sequence[str]) -> list[str]:
        """What was left out. labels: names of the classes."""
        found = []
        if self.unreadable:
            more = ", ..." * (len(self.unreadable) > MAX_EXAMPLES)
            titles = ", ".join(map(images.title, sorted(self.unreadable)[:MAX_EXAMPLES]))
            found.append(f"images that cannot be read are left out ({len(self.unreadable)}: {titles}{more})")
        if count := len(self.unlabelled):
            found.append(f"{count} image{'s' * (count > 1)} without a label left out")
        identical = {"a test image": self.in_test, "another training image": self.duplicates}
        for what, rows in identical.items():
            if rows:
                found.append(f"{len(rows)} image{'s' * (len(rows) > 1)} left out, identical to {what}")
        if self.relabelled:
            row, (other, label) = min(self.relabelled.items())
            count, first = len(self.relabelled), _in_words(self.digests[row][1], labels)
            found.append(
                f"{count} training image{'s have' if count > 1 else ' has'} more than one label, of which one is "
                f"trained: {images.title(row)} is {first}, and {images.title(other)}, which is identical, is "
                f"{_in_words(label, labels)}"
            )
        return found

    def sha256(self) -> str:
        """SHA-256 of pixels and labels, also of images that are not kept in memory."""
        whole = hashlib.sha256()
        for row in sorted(self.digests):
            mark, label = self.digests[row]
            whole.update(b"%s %s;" % (mark, str(label).encode()))
        return whole.hexdigest()


def training_rows(
    images: ImageSet,
    order: Sequence[int],
    count: int,
    test_digests: Mapping[bytes, str],
    workers: int,
    progress: Progress,
) -> TrainingRows:
    """The first `count` rows of `order` that can be read, are in no test set and differ from each other.

    Raises DataError where an image cannot be read (unless the data set skips those), or where none is left.
    """
    found, left, seen = TrainingRows(), iter(order), dict.fromkeys(test_digests, -1)
    while len(found.digests) < count and (rows := [*islice(left, count - len(found.digests))]):
        for part in read_valid(images, rows, READ_BATCH, workers):
            found.unreadable.update(part.errors)
            pixels, classes = part.content if part.indices else ((), ())
            for row, own, label in zip(part.indices, pixels, classes):
                mark, target = digest(own), _label(images, row, int(label))
                if _is_none(target):
                    found.unlabelled.append(row)
                elif mark not in seen:
                    seen[mark] = row
                    found.digests[row] = mark, target
                elif (first := seen[mark]) < 0:
                    found.in_test.append(row)
                else:
                    found.duplicates.append(row)
                    if found.digests[first][1] != target:
                        found.relabelled.setdefault(first, (row, target))
            progress(Event("check images", len(found.digests), count, images=1))
    if found.unreadable and not images.skip_unreadable:
        raise combined_error([*found.unreadable.values()])
    if not found.digests:
        raise DataError(
            "no training image is left: all are unreadable, without a label, or identical to test images."
        )
    if len(found.digests) < count:
        progress(Event("check images", count, count, images=1))
    return found


def _in_words(label: Label, labels: Sequence[str]) -> str:
    """The name of a class, a number, or the tags of the words of a text."""
    if isinstance(label, float):
        return f"{label:g}"
    if isinstance(label, int):
        return shown(labels[label])
    return shortened(" ".join("-" if own == NO_LABEL else labels[own] for own in label))


def _label(images: ImageSet, row: int, label: int) -> Label:
    """The class, the number, or the classes of all words of an item."""
    if images.values is not None:
        return images.values[row]
    return label if images.tags is None else tuple(images.tags(row))


def _is_none(label: Label) -> bool:
    """Whether there is no number, or no word with a tag."""
    if isinstance(label, tuple):
        return max(label, default=NO_LABEL) == NO_LABEL
    return isinstance(label, float) and math.isnan(label)


@dataclass(frozen=True)
class Unit:
    """The unit in which a number is learned, so that rates and the clipping of gradients fit numbers of any size.

    In it the training labels have mean 0 and variance 1. mean, std: of them in their own unit.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float], task: str) -> Unit:
        """The unit of training labels. Raises DataError where they do not differ, or beyond fp32."""
        mean, std = fmean(values), pstdev(values)
        if not 0 < std < LARGEST or not abs(mean) < LARGEST:
            raise DataError(
                f"task '{task}': the mean of its {len(values)} training labels is {mean:g} and their standard "
                f"deviation {std:g}. Numbers that differ, and are below {LARGEST:g}, can be learned: pass other "
                "texts, or data.label_column=NAME of another column."
            )
        return cls(mean, std)

    def scaled(self, values: Sequence[float]) -> list[float]:
        """Values in this unit."""
        return [(value - self.mean) / self.std for value in values]

    def head(self, linear: nn.Linear, labels: tuple[str, ...]) -> Head:
        """The layer that predicts in this unit, as one that predicts in the labels' own."""
        weight, bias = (own.detach().double() * self.std for own in (linear.weight, linear.bias))
        return Head(weight.float(), (bias + self.mean).float(), labels, regression=True)
