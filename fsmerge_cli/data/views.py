"""Views of the inputs of a training, by the kind of input."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.data.images import augment as images
from fsmerge_cli.data.images.augment import Augment
from fsmerge_cli.data.text import augment as texts


def augmentation(name: Augment, one: Inputs) -> Callable[[Inputs], Inputs]:
    """The augmentation `name` for inputs like `one`; it uses torch's global generator."""
    if isinstance(one, Tensor):
        transform = images.augmentation(name, (one.shape[-2], one.shape[-1]))
        return lambda item: transform(item) if isinstance(item, Tensor) else item
    return texts.augmentation(name)


def new_views(inputs: Inputs, augment: Augment, mixup: float, seed: int, step: int) -> tuple[Inputs, Tensor]:
    """New augmented and mixed views of one step's batch; they depend only on (seed, step).

    Also the row of the input that is mixed into each one [n] (its own: none), in host memory. mixup: share of the
    inputs that are mixed with another one of the batch.
    """
    if isinstance(inputs, Tensor):
        return images.new_views(inputs, augment, mixup, seed, step)
    return texts.new_views(inputs, augment, mixup, seed, step)


def at_low_resolution(inputs: Inputs, share: float, seed: int, step: int) -> Inputs:
    """About this share of the images of a batch at half their resolution, brought back to their size.

    Which ones depends only on (seed, step). Inputs that are no images stay as they are.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or min(inputs.shape[2:]) < 2:
        return inputs
    chosen = torch.rand(len(inputs), generator=generator(seed, "low resolution", step)) < share
    rows = chosen.nonzero().flatten().to(inputs.device)
    half = [side // 2 for side in inputs.shape[2:]]
    small = F.interpolate(inputs[rows], size=half, mode="bilinear", antialias=True, align_corners=False)
    back = F.interpolate(small, size=inputs.shape[2:], mode="bilinear", align_corners=False)
    return inputs.index_copy(0, rows, back)


__all__ = ["Augment", "at_low_resolution", "augmentation", "new_views"]
