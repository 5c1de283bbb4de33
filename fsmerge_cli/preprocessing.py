"""What happens to an image before a model reads it, and how the part that can be folded becomes weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.errors import SourceError, unknown
from fsmerge_cli.specs import Family

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash")
LEAST = 0.1
"""The smallest share of an image that a crop keeps: the image is resized to its size divided by it."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize and crop, in timm's words.

    interpolation: as PIL names it. crop_pct: share of the resized image that is kept. crop_mode: `center` keeps
    the proportions and resizes the short side, `squash` resizes both sides; then the centre is taken. The default
    is the whole image, resized. Mean and deviation are not here: they are folded into the weights.
    """

    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "squash"

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Preprocessing:
        """From timm's pretrained_cfg; without a crop_pct the whole image is taken."""
        interpolation, share = config.get("interpolation") or "bicubic", config.get("crop_pct")
        if share and (isinstance(share, bool) or not isinstance(share, int | float) or not LEAST <= share <= 1):
            raise SourceError(f"{where}: crop_pct in config.json should be from {LEAST} to 1, it is {share!r}.")
        found = cls(interpolation, share, config.get("crop_mode") or "center") if share else cls(interpolation)
        for value, known, key in (
            (found.interpolation, INTERPOLATIONS, "interpolation"),
            (found.crop_mode, CROP_MODES, "crop_mode"),
        ):
            if value not in known:
                raise SourceError(f"{where}: {key} in config.json: {unknown('value', str(value), known)}")
        return found

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
        count = "1 value" if channels == 1 else f"1 or {channels} values"
        raise SourceError(f"{where}: mean {list(mean)} and std {list(std)} need {count} each, std none of them 0.")
    name = f"{family.entry}.weight"
    if name not in weights or (set(mean) == {0.0} and set(std) == {1.0}):
        return dict(weights)
    weight = weights[name]
    if weight.ndim < 2 or not weight.numel() or weight[0].numel() % channels:
        return dict(weights)  # of another architecture, whose plan names the shape
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
            "Pass images that are already centred and models.sources.N.mean=[0.0]."
        )
    table = weights[place[0]].double()
    if table.ndim != 3 or table.shape[2:] != shift.shape:
        return {}
    table[:, place[1] :] -= shift
    return {place[0]: table.to(weights[place[0]].dtype)}
