"""Weights in a lower precision: the rounded model is both evaluated and written."""

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
"""Data types in which a merged model can be written."""


def to_dtype(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors as they are stored in the file: floating-point values in `dtype`, integer counters unchanged."""
    return {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in tensors.items()}


def rounded(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The same tensors in their own data type, with values rounded to `dtype`.

    Raises OutputError if a value is too large for `dtype`.
    """
    if dtype == "float32":
        return dict(tensors)
    found = {name: tensor.to(tensors[name].dtype) for name, tensor in to_dtype(tensors, dtype).items()}
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            largest = float(tensors[name].abs().max())
            raise OutputError(
                f"output.dtype={dtype} cannot represent {name}, whose largest absolute value is {largest:.3g}. "
                "Use output.dtype=bfloat16 or float32."
            )
    return found


def rounded_head(head: Head, dtype: str) -> Head:
    """A head with values rounded to `dtype`."""
    parts = {"weight": head.weight, "bias": head.bias, "projector": head.projector}
    found = rounded({name: t for name, t in parts.items() if t is not None}, dtype)
    return replace(head, weight=found["weight"], bias=found.get("bias"), projector=found.get("projector"))
