"""Images in folders: class folders, or flat folders of unlabelled images, one folder per task.

ROOT/TASK/train/...          images for the merge: class folders or flat
ROOT/TASK/test/...           images for the evaluation: class folders, or flat (then on features alone)
ROOT/TASK/...                no train/ and test/: class folders are split by file name, flat images
                             all go to the merge and nothing is evaluated on labels
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError, reason
from fsmerge_cli.common.options import FORBID, Share, Text
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


@dataclass(frozen=True, config=FORBID)
class Folder(DataConfig):
    """One folder per task below `root`.

    root: folder that holds one folder per task, called like the task. test_share: part of each class kept
    for the evaluation where a task's folder has no test/ of its own. bad_files: what becomes of images that cannot
    be read: refuse (the run, naming them) or skip (named in its notes). class_folders: where folders below are
    classes: both, test (those in train/ are not, its images have no labels) or none (images in folders of any
    depth, without labels).
    """

    name: Literal["folder"] = "folder"
    root: Text | None = None
    test_share: Share = 0.2
    bad_files: Literal["refuse", "skip"] = "refuse"
    class_folders: Literal["both", "test", "none"] = "both"

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet | None:
        """The images of one task; None where there are no labelled test images."""
        folder = self._folder(task)
        own = folder / split
        if own.is_dir():
            files = _files(own, task, self._classified(split))
        elif (folder / "train").is_dir() or (folder / "test").is_dir():
            files = []
        else:
            own = folder
            found = _files(folder, task, self._classified("train"))
            files = [f for f in found if self._belongs(split, f[1], f[0], folder)]
        if split == "test":  # without labels, test images still tell how well features are kept
            files = [(path, label) for path, label in files if label >= 0] or files
            if not files:
                return None
        if not files:
            raise DataError(
                f"data=folder: no images for task '{task.name}' in {own}. "
                f"Put images there ({', '.join(sorted(SUFFIXES))}), flat or in class folders."
            )
        classes = tuple(label for _, label in files)
        labelled, lenient = all(c >= 0 for c in classes), self.bad_files == "skip"
        return ImageSet(
            len(files), partial(_read, files), transform, labelled, classes, lenient, called=partial(_path, files)
        )

    def paths(self) -> Mapping[str, str]:
        """The root."""
        return {} if self.root is None else {"data.root": self.root}

    def classes(self, task: Task) -> tuple[str, ...] | None:
        """Class folders, sorted, as torchvision's ImageFolder numbers them; of train/, else of test/."""
        folder = self._folder(task)
        splits: tuple[Split, ...] = ("train", "test")
        own = next((folder / s for s in splits if self._classified(s) and (folder / s).is_dir()), folder)
        if own == folder and not self._classified("train"):
            return None
        return tuple(sorted(p.name for p in own.iterdir() if p.is_dir() and _images(p))) or None

    def _classified(self, split: Split) -> bool:
        """Whether folders are classes there; without train/ and test/ as in train/."""
        return self.class_folders == "both" or self.class_folders == split

    def _folder(self, task: Task) -> Path:
        if self.root is None:
            raise DataError("data=folder needs data.root=PATH, a folder with one folder per task in it.")
        try:
            root = Path(self.root).expanduser()
            there = root.is_dir()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~ of an unknown user
            raise DataError(
                f"data.root={self.root[:200]!r} cannot be used ({reason(error)}). Pass another path."
            ) from None
        if not there:
            raise DataError(f"data.root={root}: there is no such folder.")
        folder = root / task.name
        if not folder.is_dir() and task.alone:
            return root
        if not folder.is_dir():
            found = sorted(p.name for p in root.iterdir() if p.is_dir())
            raise DataError(
                f"data=folder: no folder for task '{task.name}' in {root}. "
                f"Found: {', '.join(found) or 'no folders'}. Name one folder after each task."
            )
        return folder

    def _belongs(self, split: Split, label: int, path: Path, folder: Path) -> bool:
        """Whether an image of an unsplit folder belongs to `split`; decided by its name, so it never moves."""
        if label < 0:
            return split == "train"
        held_out = zlib.crc32(path.relative_to(folder).as_posix().encode()) / 2**32 < self.test_share
        return held_out == (split == "test")


def _files(folder: Path, task: Task, classified: bool) -> list[tuple[Path, int]]:
    """Every image below `folder` with its class index (-1: none), in a stable order."""
    if not classified:
        return [(path, -1) for path in _images(folder)]
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and _images(p))
    flat = [(path, -1) for path in sorted(folder.iterdir()) if _is_image(path)]
    if not classes:
        return flat
    labels = list(task.labels or [])
    strangers = [name for name in classes if name not in labels]
    if strangers and task.labels is not None:
        raise DataError(
            f"data=folder: the class folders {', '.join(strangers)} in {folder} are not labels of task "
            f"'{task.name}' ({', '.join(labels)}). Rename the folders, pass models.sources.N.labels=[...] "
            "(labels=data: the folders' names, sorted), or data.class_folders=none (test: only those in test/ are "
            "classes) to use images without labels."
        )
    index = {label: i for i, label in enumerate(labels)}
    return flat + [(path, index.get(name, -1)) for name in classes for path in _images(folder / name)]


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if _is_image(path)]


def _is_image(path: Path) -> bool:
    """Hidden files are none: systems leave their own beside images."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _path(files: Sequence[tuple[Path, int]], i: int) -> str:
    return str(files[i][0])


def _read(files: Sequence[tuple[Path, int]], i: int) -> tuple[Image.Image, int]:
    return _open(files[i][0]), files[i][1]


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return image
    except Exception as error:  # every decoder raises its own for a file that lies
        raise DataError(f"the image {path} cannot be read ({error}). Repair it or take it away.") from None
