"""A layer behind the pooled features of an embedding model, as sentence-transformers has them (Dense)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
}
"""Activations by the names of torch's modules."""


@dataclass(frozen=True, repr=False)
class Dense:
    """activation(W x + b): weight [out, in], bias [out] or None; activation: a key of ACTIVATIONS."""

    weight: Tensor
    bias: Tensor | None
    activation: str

    def __call__(self, x: Tensor) -> Tensor:
        """Vectors [n, in] -> [n, out], on the device and in the type of `x`."""
        bias = None if self.bias is None else self.bias.to(x)
        return ACTIVATIONS[self.activation](F.linear(x, self.weight.to(x), bias))

    def __repr__(self) -> str:
        """One line: the sizes and the activation."""
        out, width = self.weight.shape
        return f"Dense({width} -> {out}, {self.activation})"

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Weight, and bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def behind(self, projector: Tensor) -> Dense:
        """The layer on vectors [n, d'] that a projector [in, d'] maps to its inputs: exactly one layer again."""
        weight = self.weight.double().cpu() @ projector.double().cpu()
        return replace(self, weight=weight.to(self.weight.dtype))


def embedded(layers: Sequence[Dense], features: Tensor) -> Tensor:
    """What the layers make of pooled features [n, d], in their order; without layers these themselves."""
    for layer in layers:
        features = layer(features)
    return features


def projected(layers: Sequence[Dense], projector: Tensor) -> list[Dense]:
    """The layers of the same embeddings from the features of a merged model. projector: U_out [d_i, d'].

    The first one contains the projector; without layers the projector is the only one.
    """
    if not layers:
        return [Dense(projector, None, "Identity")]
    return [layers[0].behind(projector), *layers[1:]]
