"""Rows of a convolution or a linear layer: what its weight is multiplied by, and what it puts out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a convolution or a linear layer, [out, in, ...]."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise TypeError(f"{type(module).__name__} is neither a convolution nor a linear layer")
    return module.weight


def regressors(module: nn.Module) -> int:
    """The number of values that one output of `module` is computed from: inputs times kernel positions."""
    return weight_of(module)[0].numel()


def input_rows(module: nn.Module, value: Tensor, places: Tensor) -> Tensor:
    """The patches that `module` reads from its input [n, C, h, w], at m output positions: [n, m, C kh kw].

    places: indices of the positions, [n, m]. A linear layer reads [n, C] at its one position.
    """
    if isinstance(module, nn.Conv2d):
        how = module.kernel_size, module.dilation, module.padding, module.stride
        value = F.unfold(value, *how)  # type: ignore[arg-type]
    return _at(value, places)


def units_first(module: nn.Module, value: Tensor) -> Tensor:
    """The input or output of a module with its units second: [n, C, h, w] of a linear layer's [n, h, w, C]."""
    return value.movedim(-1, 1) if isinstance(module, nn.Linear) else value


def output_rows(value: Tensor, places: Tensor) -> Tensor:
    """Values [n, C, h, w] or [n, C] at the positions `places` [n, m]: [n, m, C]."""
    return _at(value, places)


def _at(value: Tensor, places: Tensor) -> Tensor:
    rows = value.flatten(2) if value.ndim > 2 else value[..., None]
    index = places.to(value.device)[:, None].expand(-1, rows.shape[1], -1)
    return rows.gather(2, index).transpose(1, 2)


def positions(value: Tensor) -> int:
    """Positions of an activation [n, C, h, w] or [n, C]."""
    return value[0, 0].numel()


def sampled_places(images: int, available: int, wanted: float, random: torch.Generator) -> Tensor:
    """Indices of about `wanted` of the `available` positions of every image, [images, m]; at most all of them."""
    count = min(available, max(1, math.ceil(wanted)))
    if count == available:
        return torch.arange(available).expand(images, -1)
    return torch.rand(images, available, generator=random).topk(count, 1).indices.sort(1).values
