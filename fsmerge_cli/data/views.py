"""Views of the inputs of a training, by the kind of input."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fsmerge_cli.common.inputs import Inputs
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


__all__ = ["Augment", "augmentation", "new_views"]
