"""The features that a written model has for tensors of its user, which may not fit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.inputs import Inputs, NamedTensors
from fsmerge_cli.common.shown import brief

TOKENS = (
    "the tokens of texts should be those that `transform` gives of each text, as rows [n, length] of one value"
)


def features_of(model: Any, inputs: Any, run: Callable[[Inputs], Tensor] | None = None) -> Tensor:
    """Features [n, d] of a `Merged` model for images [n, C, H, W], or tokens [n, length].

    run: what gives them for inputs on the model's device (None: its backbone). Raises DataError for
    inputs of another kind, and for a shape or a type of numbers that the network refuses.
    """
    texts = model.family.kind == "text"
    if not isinstance(inputs, NamedTensors if texts else Tensor):
        raise DataError(_refusal(model, brief(inputs) if isinstance(inputs, str) else type(inputs).__name__))
    try:
        with torch.no_grad():
            found: Tensor = (run or model.backbone)(inputs.to(model.device))
            return found
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
        if fits(model, inputs):
            raise
    raise DataError(_refusal(model, _described(inputs)))


def fits(model: Any, inputs: Inputs) -> bool:
    """Whether inputs have the shape and the type of numbers of what `transform` of the model gives, as rows."""
    if isinstance(inputs, NamedTensors):
        return inputs.mask.ndim == 2
    return inputs.is_floating_point() and tuple(inputs.shape[1:]) == tuple(model.arch.input_size)


def _refusal(model: Any, found: str) -> str:
    if model.family.kind == "text":
        return f"{TOKENS}, got {found}. `predict` takes texts as they are."
    size = ", ".join(map(str, model.arch.input_size))
    return (
        f"images should be a tensor of floats [n, {size}] with pixels in 0..1, as `transform` gives of each "
        f"image, got {found}. `predict` takes images of any size."
    )


def _described(inputs: Inputs) -> str:
    if isinstance(inputs, NamedTensors):
        return f"tensors [{', '.join(map(str, inputs.mask.shape))}]"
    return f"{str(inputs.dtype).removeprefix('torch.')} [{', '.join(map(str, inputs.shape))}]"
