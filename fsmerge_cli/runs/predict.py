"""Predictions of a written model for image files, PIL images, arrays and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError, DataError, reason
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.shown import brief, shown
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.decode import FORMATS, open_image
from fsmerge_cli.data.images.files import images as images_in
from fsmerge_cli.data.images.files import other_files
from fsmerge_cli.data.reading import combined_error
from fsmerge_cli.models.head import Head, of_classes

BATCH = 64
"""Images that are in memory and computed at once."""

ImageInput = str | Path | Image.Image | npt.NDArray[Any] | Tensor
"""One image: a file or its pixels. Arrays are [H, W] or [H, W, C], tensors [C, H, W]; uint8, or floats in 0..1."""


@dataclass(frozen=True)
class Candidate:
    """A label of a task, and its probability."""

    label: str
    probability: float
    task: str


@dataclass(frozen=True)
class Prediction:
    """The most probable labels of one image, best first.

    The probabilities are those of all labels that were asked for: of one task, or of all tasks together. numbers:
    by task that predicts one. Where all these tasks predict a number, `top` is empty, and `label`, `probability`
    and `task` raise ConfigError.
    """

    top: tuple[Candidate, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def _best(self) -> Candidate:
        """The most probable label. Raises ConfigError where there are only numbers."""
        if not self.top:
            names, verb = ", ".join(map(repr, self.numbers)), "predicts" if len(self.numbers) == 1 else "predict"
            raise ConfigError(
                f"{names} {verb} a number, which has no label and no probability. The number is "
                f".numbers[{next(iter(self.numbers), '')!r}]."
            )
        return self.top[0]

    @property
    def label(self) -> str:
        """The most probable label."""
        return self._best.label

    @property
    def probability(self) -> float:
        """Its probability."""
        return self._best.probability

    @property
    def task(self) -> str:
        """The task that it belongs to."""
        return self._best.task

    def __repr__(self) -> str:
        """The labels with their probabilities, and the numbers."""
        parts = [f"{c.task}: {c.label} {c.probability:.1%}" for c in self.top]
        parts += [f"{task}: {value:.4g}" for task, value in self.numbers.items()]
        return f"Prediction({', '.join(parts)})"


def outputs_of(heads: Mapping[str, Head], features: Tensor, joint: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Probabilities [n, labels] of the labels of all heads together, and the predicted numbers by task, [n]."""
    numbers = {name: head(features)[:, 0] for name, head in heads.items() if head.regression}
    logits = [head.joint_logits(features) if joint else head(features) for head in of_classes(heads).values()]
    return torch.cat([features[:, :0], *logits], 1).softmax(1), numbers


def ranked(
    probabilities: Tensor, names: Sequence[tuple[str, str]], top_k: int, numbers: Mapping[str, Tensor]
) -> list[Prediction]:
    """The `top_k` best of probabilities [n, labels]. names: task and label of a column. numbers: by task, [n]."""
    values, columns = probabilities.topk(min(top_k, len(names)), dim=1)
    return [
        Prediction(
            tuple(Candidate(names[c][1], p, names[c][0]) for c, p in zip(own, shares)),
            {name: found[row].item() for name, found in numbers.items()},
        )
        for row, (own, shares) in enumerate(zip(columns.tolist(), values.tolist()))
    ]


def require_top_k(top_k: Any) -> int:
    """A number of labels. Raises ConfigError."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ConfigError(f"top_k: should be a whole number from 1 on, got {brief(top_k)}.")
    return top_k


def is_one(images: Any) -> bool:
    """Whether it is one image, not several."""
    if isinstance(images, Tensor):
        return images.ndim <= 3
    return isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim <= 3)


def batches(images: Any, transform: Any) -> Iterator[Tensor]:
    """Pixels in 0..1 [<= BATCH, C, H, W] of the images. Raises DataError."""
    if not isinstance(images, list | tuple | np.ndarray | Tensor):
        raise DataError(
            f"an image should be a path, a PIL image, an array or a tensor, or a list of them, got "
            f"{type(images).__name__}."
        )
    for start in range(0, len(images), BATCH):
        yield torch.stack([pixels_of(image, transform) for image in images[start : start + BATCH]])


def pixels_of(image: ImageInput, transform: ToPixels) -> Tensor:
    """Pixels in 0..1 [C, H, W] at the size of the model. Raises DataError.

    A tensor or array of floats that has this size already is taken as it is.
    """
    if isinstance(image, str | Path):
        return transform(_opened(Path(image)))
    if isinstance(image, Image.Image):
        return transform(image)
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.array(image))
        tensor = tensor[None] if tensor.ndim == 2 else tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor
    elif isinstance(image, Tensor):
        tensor = image[None] if image.ndim == 2 else image
    else:
        raise DataError(
            f"an image should be a path, a PIL image, an array or a tensor, got {type(image).__name__}."
        )
    return _resized(tensor.detach().cpu(), transform)


def _resized(tensor: Tensor, transform: ToPixels) -> Tensor:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or not tensor.numel():
        raise DataError(
            f"an image of shape {list(tensor.shape)} cannot be used: tensors are [C, H, W] and arrays [H, W] or "
            "[H, W, C], with 1 or 3 channels. Several images are a list, or a tensor [n, C, H, W]."
        )
    if tensor.is_floating_point():
        low, high = tensor.min().item(), tensor.max().item()
        if not (low >= 0 and high <= 1):  # also for NaN
            raise DataError(
                f"pixels from {low:.3g} to {high:.3g}: floats have to lie in 0..1, without normalisation. Scale "
                "them, or pass uint8."
            )
        if tuple(tensor.shape) == transform.input_size:
            return tensor.float()
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise DataError(f"pixels of type {tensor.dtype} have no known range. Pass uint8, or floats in 0..1.")
    array = tensor.movedim(0, -1).contiguous().numpy()
    return transform(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array[..., :3]))


def _opened(path: Path) -> Image.Image:
    if path.is_dir():
        raise DataError(f"{shown(path)} is a folder. Pass its images, or `fsmerge predict RUN {shown(path)}`.")
    try:
        return open_image(path)
    except DataError:
        raise
    except Exception as error:  # decoders raise various errors for malformed files
        raise DataError(
            f"the image {shown(path)} cannot be read ({reason(error)}). Formats: {', '.join(FORMATS)}."
        ) from None


def image_files(paths: Sequence[str]) -> list[Path]:
    """The given files, and the images in the given folders, in order. Raises DataError where there are none."""
    found: list[Path] = []
    for text in paths:
        path = Path(text).expanduser()
        if not path.exists():
            raise DataError(f"{shown(path)} does not exist. Give image files, or folders of them.")
        inside = images_in(path) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{shown(path)} holds no image. Formats: {', '.join(FORMATS)}.")
        found += inside
    return found


def passed_over(paths: Sequence[str]) -> tuple[str, ...]:
    """Notes on the files in the given folders that are no images."""
    folders = [path for path in (Path(text).expanduser() for text in paths) if path.is_dir()]
    found = ((folder, other_files(folder)) for folder in folders)
    return tuple(
        f"files in {shown(folder)} that are no images were not used: {what}" for folder, what in found if what
    )


def predictions(
    model: Any, files: Sequence[Path], task: str | None, top_k: int, progress: Progress = silent
) -> list[Prediction]:
    """The predictions of a `Merged` model for image files; one error for all that cannot be read."""
    found: list[Prediction] = []
    errors: list[DataError] = []
    for start in range(0, len(files), BATCH):
        pixels = []
        for file in files[start : start + BATCH]:
            try:
                pixels.append(pixels_of(file, model.transform))
            except DataError as error:
                errors.append(error)
        if not errors:
            found += model.predict(torch.stack(pixels), task, top_k)
        progress(Event("predict", min(start + BATCH, len(files)), len(files), images=1))
    if errors:
        raise combined_error(errors)
    return found


def chosen_device(name: str | None) -> torch.device:
    """The device of that name; without one the CUDA GPU, where there is one. Raises ConfigError."""
    seen = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not seen.get(name or "cpu", True):
        raise ConfigError(f"--device {name}: torch sees no such GPU. Leave the option out.")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
