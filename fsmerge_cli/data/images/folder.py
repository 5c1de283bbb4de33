"""Images in folders: class folders, or flat folders of unlabelled images, one folder per task.

ROOT/TASK/train/...          images for the merge: class folders or flat
ROOT/TASK/test/...           images for the evaluation: class folders, or flat (then only features are compared)
ROOT/...                     only images: every source sees every image (see `mixed`)
ROOT/TASK/...                without train/ and test/: class folders are split by file name; flat images
                             are all used for the merge, and no accuracy is measured
"""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError, reason
from fsmerge_cli.common.options import FORBID, Share, Text
from fsmerge_cli.common.separation import Input
from fsmerge_cli.common.shown import listed, shown
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task
from fsmerge_cli.data.images.decode import open_image
from fsmerge_cli.data.images.files import SUFFIXES, beside_splits, images, is_ignored, is_image, other_files
from fsmerge_cli.data.images.mixed import beside_tasks, is_mixed
from fsmerge_cli.data.matching import of_folders


@dataclass(frozen=True, config=FORBID)
class Folder(DataConfig):
    """One folder per task below `root`, or one folder of images for all tasks.

    root: folder with one folder per task, named after the task, or with images that every source sees. test_share:
    share of each class held out for the evaluation if a task's folder has no train/ and test/. bad_files: what
    happens with images that cannot be read: refuse (an error that lists them) or skip (the notes list them).
    class_folders: where subfolders are classes: both, test (only in test/; images in train/ have no labels) or
    none (images in folders of any depth, without labels).
    """

    name: Literal["folder"] = "folder"
    root: Text | None = None
    test_share: Share = 0.2
    bad_files: Literal["refuse", "skip"] = "refuse"
    class_folders: Literal["both", "test", "none"] = "both"

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of one task; None if there are no test images."""
        folder = self._folder(task)
        own = folder / split
        notes: tuple[str, ...] = ()
        if own.is_dir():
            files, notes = _files(own, task, self._classified(split))
        elif (folder / "train").is_dir() or (folder / "test").is_dir():
            files = []
        else:
            own = folder
            found, notes = _files(folder, task, self._classified("train"))
            files = [f for f in found if self._belongs(split, f[1], f[0], folder)]
        if split == "test":  # unlabelled test images still serve to compare features
            with_label = [(path, label) for path, label in files if label >= 0]
            if with_label and len(with_label) < len(files):
                count = len(files) - len(with_label)
                notes += (
                    f"task '{task.name}': {count} test images beside the class folders have no label: not used",
                )
            files = with_label or files
            if not files:
                return None
        if not files:
            raise DataError(
                f"data=folder: no images for task '{task.name}' in {own}. "
                f"Put images there ({', '.join(sorted(SUFFIXES))}), flat or in class folders."
            )
        if split == "train" and own != folder and (text := beside_splits(folder, is_image, "images")):
            notes += (f"task '{task.name}': {text}" if task.name else text,)
        if split == "train" and task.name and folder != Path(str(self.root)).expanduser():
            notes += beside_tasks(folder.parent)
        classes = tuple(label for _, label in files)
        labelled, skip_unreadable = all(c >= 0 for c in classes), self.bad_files == "skip"
        return ImageSet(
            len(files),
            partial(_read, files),
            transform,
            labelled,
            classes,
            skip_unreadable,
            notes=(*_notes(own, task.name), *notes),
            title_of=partial(_path, files),
        )

    def is_mixed(self, tasks: Sequence[str]) -> bool:
        """Whether the root holds images for all tasks, and no folder of one of them."""
        if self.root is None:
            return False
        try:
            return is_mixed(Path(self.root).expanduser(), tasks)
        except (OSError, ValueError, RuntimeError):  # an invalid path, which `_folder` reports
            return False

    def paths(self) -> Mapping[str, str]:
        """The root."""
        return {} if self.root is None else {"data.root": self.root}

    def inputs(self, tasks: Sequence[str]) -> list[Input]:
        """The folders of the tasks, or the root where it holds the images themselves."""
        if self.root is None:
            return []
        folders = [os.path.join(self.root, task) for task in tasks]
        found = [path if os.path.isdir(os.path.expanduser(path)) else self.root for path in folders]
        return [Input("data.root", path) for path in found]

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Class folders of train/, else of test/, in sorted order as in torchvision's ImageFolder."""
        folder = self._folder(task)
        splits: tuple[Split, ...] = ("train", "test")
        own = next((folder / s for s in splits if self._classified(s) and (folder / s).is_dir()), folder)
        if own == folder and not self._classified("train"):
            return None
        return tuple(_class_folders(own)) or None

    def _classified(self, split: Split) -> bool:
        """Whether subfolders of a split are classes."""
        return self.class_folders == "both" or self.class_folders == split

    def _folder(self, task: Task) -> Path:
        if self.root is None:
            raise DataError("data=folder needs data.root=PATH, a folder with one folder per task in it.")
        try:
            root = Path(self.root).expanduser()
            exists = root.is_dir()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~ of an unknown user
            raise DataError(
                f"data.root={self.root[:200]!r} cannot be used ({reason(error)}). Pass another path."
            ) from None
        if not exists:
            raise DataError(f"data.root={shown(root)}: no such folder.")
        folder = root / task.name
        if not folder.is_dir() and task.own_data:
            return root
        if not folder.is_dir():
            found = sorted(p.name for p in root.iterdir() if p.is_dir())
            raise DataError(
                f"data=folder: no folder for task '{task.name}' in {root}. "
                f"Found: {listed(found, 'no folders')}. Name one folder after each task, or put "
                "the images of all tasks directly into the root."
            )
        return folder

    def _belongs(self, split: Split, label: int, path: Path, folder: Path) -> bool:
        """Whether an image of a folder without train/ and test/ belongs to `split`, by a hash of its name."""
        if label < 0:
            return split == "train"
        held_out = zlib.crc32(path.relative_to(folder).as_posix().encode()) / 2**32 < self.test_share
        return held_out == (split == "test")


def _files(folder: Path, task: Task, classified: bool) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """Every image below `folder` with its class index (-1: none), in sorted order, and notes."""
    if not classified:
        return [(path, -1) for path in images(folder)], ()
    classes = _class_folders(folder)
    flat = [(path, -1) for path in sorted(folder.iterdir()) if is_image(path)]
    if not classes or task.labels is None:
        return flat + [(path, -1) for own in classes.values() for path in images(own)], ()
    labels = tuple(_normal(label) for label in task.labels)
    if repeated := sorted(name for name, times in Counter(labels).items() if times > 1 and name in classes):
        raise DataError(
            f"data=folder: task '{task.name}' has the label {listed(repeated)} more than once, so that the "
            "folder of that name has no row of its own. Pass models.sources.N.labels=[...] without repetition."
        )
    rows, notes = of_folders(replace(task, labels=labels), [*classes])
    if unknown := [name for name, row in zip(classes, rows) if row is None]:
        raise DataError(
            f"data=folder: the class folders {listed(unknown)} in {shown(folder)} are not labels of task "
            f"'{task.name}' ({listed(labels)}). Rename the folders, pass models.sources.N.labels=[...] "
            "(labels=data: the folders' names, sorted), or data.class_folders=none (test: only folders in test/ "
            "are classes) to use images without labels."
        )
    found = zip(classes.values(), rows)
    return flat + [(path, -1 if row is None else row) for own, row in found for path in images(own)], notes


def _class_folders(folder: Path) -> dict[str, Path]:
    """Class folders by name, sorted. Raises DataError for one with only files of other formats."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_ignored(path.name) and found.setdefault(_normal(path.name), path) != path:
            raise DataError(
                f"data=folder: two class folders in {shown(folder)} are called '{shown(path.name)}', written with "
                "different Unicode characters. Merge them into one."
            )
    places: dict[str, str] = {}
    for name, path in found.items():
        if (first := places.setdefault(os.path.realpath(path), name)) != name:
            raise DataError(
                f"data=folder: the class folders '{shown(first)}' and '{shown(name)}' in {shown(folder)} are one "
                "folder, by a link, so that each image would have two classes. Remove one of them."
            )
    kept = {name: path for name, path in found.items() if images(path)}
    for name, path in found.items():
        if name not in kept and (others := other_files(path)):
            raise DataError(
                f"data=folder: the class folder {shown(path)} has no image that can be read, only {others}. "
                f"Convert them to one of {', '.join(sorted(SUFFIXES))} (or restore them), or remove the folder."
            )
    return kept


def _normal(name: str) -> str:
    """A name in Unicode normal form C: file systems and editors write the same letters in different forms."""
    return unicodedata.normalize("NFC", name)


def _notes(folder: Path, task: str) -> tuple[str, ...]:
    """The files that were not used because of their suffixes."""
    found = other_files(folder)
    where = f"task '{task}': " if task else ""
    return (f"{where}files in {shown(folder)} that are no images were not used: {found}",) if found else ()


def _path(files: Sequence[tuple[Path, int]], i: int) -> str:
    return shown(files[i][0])


def _read(files: Sequence[tuple[Path, int]], i: int) -> tuple[Image.Image, int]:
    return _open(files[i][0]), files[i][1]


def _open(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except Exception as error:  # decoders raise various errors for malformed files
        raise DataError(
            f"the image {shown(path)} cannot be read ({reason(error)}). Repair or remove it."
        ) from None
