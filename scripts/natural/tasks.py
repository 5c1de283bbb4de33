"""The tasks: 32 x 32 colour images of public data sets, one archive per task and split.

The data sets are read from where the user has them (--root), in the forms that Hugging Face's `datasets` and numpy
read: `cifar10/{train,test}.parquet` (columns image and label) and `{fashion_mnist,mnist}/{train,test}.npz` (images
[n, 28, 28], labels [n]). Nothing of them is stored in the repository.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsmerge_cli.data.images.decode import open_image

SIZE = 32

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class PhotoTask:
    """A data set and the classes of it that a task has, in the order of its head's rows."""

    data_set: str
    names: Sequence[str]
    classes: Sequence[str]

    @property
    def rows(self) -> list[int]:
        """The class indices of the data set."""
        return [self.names.index(name) for name in self.classes]


TASKS = {
    "cifar10": PhotoTask("cifar10", CIFAR, CIFAR),
    "animals": PhotoTask("cifar10", CIFAR, ("bird", "cat", "deer", "dog", "frog", "horse")),
    "vehicles": PhotoTask("cifar10", CIFAR, ("airplane", "automobile", "ship", "truck")),
    "fashion": PhotoTask("fashion_mnist", FASHION, FASHION),
    "mnist": PhotoTask("mnist", DIGITS, DIGITS),
    "deer_horse": PhotoTask("cifar10", CIFAR, ("deer", "horse")),
    "ship_truck": PhotoTask("cifar10", CIFAR, ("ship", "truck")),
    "other_photographs": PhotoTask(
        "cifar10", CIFAR, ("airplane", "automobile", "bird", "cat", "dog", "frog")
    ),  # auxiliary images for the two before it
}
TASKS |= {f"{task}_of_cifar10": TASKS[task] for task in ("fashion", "mnist", "animals", "vehicles")}  # a parent


def archive(
    root: Path, folder: Path, task: str, split: str, labels: bool = True, size: int = SIZE, most: int | None = None
) -> Path:
    """The archive TASK-SPLIT.npz in `folder`, made from the data set in `root` where it is missing.

    images: uint8 [n, size, size, 3], the first `most` of the task; labels: rows of the task's head [n], unless
    they are left out.
    """
    kind = f"-{size}" * (size != SIZE) + f"-first-{most}" * (most is not None) + "-unlabelled" * (not labels)
    path = folder / f"{task}-{split}{kind}.npz"
    if not path.is_file():
        found = TASKS[task]
        images, classes = _read(root / found.data_set, split)
        places = {row: place for place, row in enumerate(found.rows)}
        kept = np.flatnonzero(np.isin(classes, found.rows))[:most]
        folder.mkdir(parents=True, exist_ok=True)
        own = {"labels": np.array([places[int(label)] for label in classes[kept]])} if labels else {}
        partial = path.with_suffix(".partial.npz")  # a killed run leaves no half archive
        np.savez(partial, images=_resized(images[kept], size), **own)
        partial.replace(path)
    return path


def _resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 [n, size, size, 3], by bicubic interpolation."""
    if images.shape[1] == size:
        return images
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)) for x in images]
    )


def _read(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images of a data set as uint8 [n, 32, 32, 3], and their classes [n]."""
    if (folder / f"{split}.npz").is_file():
        with np.load(folder / f"{split}.npz") as file:
            images, labels = file["images"], file["labels"]
        opened = (Image.fromarray(image) for image in images)
    elif (folder / f"{split}.parquet").is_file():
        import pyarrow.parquet as parquet

        table = parquet.read_table(folder / f"{split}.parquet").to_pydict()
        labels = np.array(table["label"])
        opened = (open_image(io.BytesIO(cell["bytes"])) for cell in table["image"])
    else:
        raise SystemExit(
            f"{folder} has no {split}.parquet and no {split}.npz. Put the data sets into --root=FOLDER: "
            "cifar10/{train,test}.parquet, fashion_mnist/{train,test}.npz, mnist/{train,test}.npz."
        )
    pixels = [np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in opened]
    return np.stack(pixels), labels.astype(np.int64)
