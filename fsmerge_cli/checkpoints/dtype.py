"""Weights in a smaller type: what is written, and what everything is measured with, is the rounded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fsmerge_cli.common.errors import OutputError
from fsmerge_cli.models.head import Head

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""How a merged model may be written."""


def stored(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors as they lie in the file: numbers in `dtype`, counters as they are."""
    return {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in tensors.items()}


def rounded(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The same tensors, of their own type, with the values that `dtype` has.

    Raises OutputError where one is too large for it.
    """
    if dtype == "float32":
        return dict(tensors)
    found = {name: tensor.to(tensors[name].dtype) for name, tensor in stored(tensors, dtype).items()}
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            largest = float(tensors[name].abs().max())
            raise OutputError(
                f"output.dtype={dtype} cannot hold {name}, whose largest number is {largest:.3g}. "
                "Take output.dtype=bfloat16 or float32."
            )
    return found


def rounded_head(head: Head, dtype: str) -> Head:
    """A head with the values that `dtype` has."""
    parts = {"weight": head.weight, "bias": head.bias, "projector": head.projector}
    found = rounded({name: t for name, t in parts.items() if t is not None}, dtype)
    return replace(head, weight=found["weight"], bias=found.get("bias"), projector=found.get("projector"))
