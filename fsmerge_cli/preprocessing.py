"""What happens to an image before a model reads it, and how the part that can be folded becomes weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.errors import SourceError
from fsmerge_cli.specs import Family


@dataclass(frozen=True)
class Preprocessing:
    """Resize and crop: interpolation (as PIL names it), crop_pct (share of the resized side that is kept).

    Mean and deviation are not here: they are folded into the weights, so every model reads pixels in 0..1.
    """

    interpolation: str = "bicubic"
    crop_pct: float | None = None
    crop_mode: str = "center"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Preprocessing:
        """From timm's pretrained_cfg; keys that are missing take the defaults."""
        known = {key: config[key] for key in ("interpolation", "crop_pct", "crop_mode") if config.get(key)}
        return cls(**known)

    def differences(self, other: Preprocessing) -> list[str]:
        """What `other` does differently, in words; those things cannot be folded into weights."""
        pairs = ((key, getattr(self, key), getattr(other, key)) for key in self.__dataclass_fields__)
        return [f"{key} {theirs} instead of {own}" for key, own, theirs in pairs if own != theirs]


PLAIN = Preprocessing()
"""The whole image, resized where its size differs."""


def fold_normalisation(
    family: Family,
    arch: Any,
    weights: Mapping[str, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    where: str,
) -> dict[str, Tensor]:
    """Weights that read plain pixels instead of (pixels - mean) / std; exact but for rounding.

    W' = W / std and b' = b - sum W' mean, in fp64, along the channels of the entry weight. Without a bias the
    shift goes into the patch rows of the position table (not class or register rows), before any resampling.
    """
    channels = arch.input_size[0]
    if not all(len(values) in (1, channels) for values in (mean, std)) or 0.0 in std:
        raise SourceError(
            f"{where}: mean {list(mean)} and std {list(std)} need 1 or {channels} values each, std none of them 0."
        )
    name = f"{family.entry}.weight"
    if name not in weights or (set(mean) == {0.0} and set(std) == {1.0}):
        return dict(weights)
    weight = weights[name]
    grouped = weight.double().reshape(weight.shape[0], channels, -1)
    scaled = grouped / torch.tensor(std, dtype=torch.float64).reshape(1, -1, 1)
    shift = (scaled * torch.tensor(mean, dtype=torch.float64).reshape(1, -1, 1)).sum((1, 2))
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
        return {name: (bias.double() - shift).to(bias.dtype)}
    place = family.positions(arch)
    if place is None or place[0] not in weights:
        raise SourceError(
            f"{where} cannot be folded into {family.entry}, which has no bias. "
            "Pass images that are already centred and models.sources.N.mean=[0.0]."
        )
    table = weights[place[0]].double()
    table[:, place[1] :] -= shift
    return {place[0]: table.to(weights[place[0]].dtype)}
