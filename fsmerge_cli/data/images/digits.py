"""scikit-learn's scanned digits (UCI, 1797 images of 8 x 8 grey pixels), with a fixed split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task

TEST_SHARE = 0.3
SPLIT_SEED = 0


@dataclass(frozen=True, config=FORBID)
class Digits(DataConfig):
    """Images of the digits ("0" ... "9") among a task's labels."""

    name: Literal["digits"] = "digits"

    def build(self, split: Split, task: Task, transform: Callable[[Image.Image], Tensor]) -> ImageSet:
        """Images of one split; 30 % of every class are test images, never used in training."""
        if task.labels is None or not set(task.labels) <= {str(digit) for digit in range(10)}:
            raise DataError(
                f"data=digits: the labels of task '{task.name}' are {list(task.labels or ())}, "
                "and the data set has '0' to '9'. Pass models.sources.N.labels=[...] or another data=..."
            )
        images, digits = _load()[split]
        keep = np.flatnonzero(np.isin(digits, [int(label) for label in task.labels]))
        place = {int(label): index for index, label in enumerate(task.labels)}
        classes = [place[int(digit)] for digit in digits[keep]]
        return ImageSet(len(keep), partial(_read, images[keep], classes), transform, labelled=True)


def _read(images: Any, classes: Sequence[int], i: int) -> tuple[Image.Image, int]:
    return Image.fromarray(images[i]), classes[i]


@cache
def _load() -> dict[str, tuple[Any, Any]]:
    """Images as uint8 [n, 8, 8] and digits [n] per split."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError("data=digits needs scikit-learn: pip install scikit-learn") from None
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, bunch.target, test_size=TEST_SHARE, stratify=bunch.target, random_state=SPLIT_SEED
    )
    return {"train": (train_x, train_y), "test": (test_x, test_y)}
