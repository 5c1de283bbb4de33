"""Folding the normalisation of input images (mean and std) into the weights of the first layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.architectures import Family
from fsmerge_cli.common.errors import SourceError


def fold_normalisation(
    family: Family,
    arch: Any,
    weights: Mapping[str, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    where: str,
) -> dict[str, Tensor]:
    """Weights for pixels in 0..1 instead of (pixels - mean) / std; exact up to rounding.

    W' = W / std and b' = b - sum W' mean, in fp64, along the channels of the entry weight. Without a bias the
    shift is folded into the patch rows of the position embeddings (not class or register rows), before any
    resampling.
    """
    channels = arch.input_size[0]
    if not all(len(values) in (1, channels) for values in (mean, std)) or min(std) <= 0:
        count = "1 value" if channels == 1 else f"1 or {channels} values"
        raise SourceError(f"{where}: mean {list(mean)} and std {list(std)} need {count} each, every std above 0.")
    name = f"{family.entry}.weight"
    if name not in weights or (set(mean) == {0.0} and set(std) == {1.0}):
        return dict(weights)
    weight = weights[name]
    if weight.ndim < 2 or not weight.numel() or weight[0].numel() % channels:
        return dict(weights)  # of another architecture; compile_plan reports the shape
    grouped = weight.double().reshape(weight.shape[0], channels, -1)
    scaled = grouped / torch.tensor(std, dtype=torch.float64, device=weight.device).reshape(1, -1, 1)
    shift = (scaled * torch.tensor(mean, dtype=torch.float64, device=weight.device).reshape(1, -1, 1)).sum((1, 2))
    folded = {name: scaled.reshape(weight.shape).to(weight.dtype)}
    if set(mean) != {0.0}:
        folded |= _fold_shift(family, arch, weights, shift, f"{where}: mean {list(mean)}")
    return {**weights, **folded}


def _fold_shift(
    family: Family, arch: Any, weights: Mapping[str, Tensor], shift: Tensor, where: str
) -> dict[str, Tensor]:
    name = f"{family.entry}.bias"
    if name in weights:
        bias = weights[name]
        if bias.shape != shift.shape:
            return {}  # as above
        return {name: (bias.double() - shift).to(bias.dtype)}
    place = family.positions(arch)
    if place is None or place[0] not in weights:
        raise SourceError(
            f"{where} cannot be folded into {family.entry}, which has no bias. "
            "Pass images that are already centred, and models.sources.N.mean=[0.0]."
        )
    table = weights[place[0]].double()
    if table.ndim != 3 or table.shape[2:] != shift.shape:
        return {}
    table[:, place[1] :] -= shift
    return {place[0]: table.to(weights[place[0]].dtype)}
