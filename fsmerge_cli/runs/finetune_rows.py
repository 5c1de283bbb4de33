"""The training images of `fsmerge finetune`: those that can be read, without duplicates and test images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.draw import READ_BATCH, digest
from fsmerge_cli.data.reading import combined_error, read_valid
from fsmerge_cli.data.sampling import MAX_EXAMPLES


@dataclass(frozen=True)
class TrainingRows:
    """The rows of the usable training images, in random order, and those of the images that are left out.

    digests: row -> digest of the pixels and class. unreadable: row -> error. in_test: rows identical to a test
    image. duplicates: rows identical to another training image.
    """

    digests: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    unreadable: dict[int, DataError] = field(default_factory=dict)
    in_test: list[int] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)

    def notes(self, images: ImageSet) -> list[str]:
        """What was left out."""
        found = []
        if self.unreadable:
            more = ", ..." * (len(self.unreadable) > MAX_EXAMPLES)
            titles = ", ".join(map(images.title, sorted(self.unreadable)[:MAX_EXAMPLES]))
            found.append(f"images that cannot be read are left out ({len(self.unreadable)}: {titles}{more})")
        identical = {"a test image": self.in_test, "another training image": self.duplicates}
        for what, rows in identical.items():
            if rows:
                found.append(f"{len(rows)} image{'s' * (len(rows) > 1)} left out, identical to {what}")
        return found

    def sha256(self) -> str:
        """SHA-256 of pixels and classes, also of images that are not kept in memory."""
        whole = hashlib.sha256()
        for row in sorted(self.digests):
            whole.update(b"%s %d;" % self.digests[row])
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
    found, left, seen = TrainingRows(), iter(order), set(test_digests)
    while len(found.digests) < count and (rows := [*islice(left, count - len(found.digests))]):
        for part in read_valid(images, rows, READ_BATCH, workers):
            found.unreadable.update(part.errors)
            pixels, classes = part.content if part.indices else ((), ())
            for row, own, label in zip(part.indices, pixels, classes):
                mark = digest(own)
                if mark in seen:
                    (found.in_test if mark in test_digests else found.duplicates).append(row)
                else:
                    seen.add(mark)
                    found.digests[row] = mark, int(label)
            progress(Event("check images", len(found.digests), count, images=1))
    if found.unreadable and not images.skip_unreadable:
        raise combined_error([*found.unreadable.values()])
    if not found.digests:
        raise DataError("no training image is left: all are unreadable, or identical to test images.")
    if len(found.digests) < count:
        progress(Event("check images", count, count, images=1))
    return found
