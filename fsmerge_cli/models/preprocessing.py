"""Preprocessing of an image before it is input to a model, except what is folded into weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsmerge_cli.common.errors import ConfigError, SourceError, unknown

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash")

MIN_CROP_PCT = 0.1
"""Smallest crop_pct: the image is resized to the input size divided by crop_pct."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize and crop, with timm's keys.

    interpolation: PIL's name. crop_pct: fraction of the resized image that is kept. crop_mode: `center` keeps the
    aspect ratio and resizes the short side, `squash` resizes both sides; both are followed by a centre crop. The
    default is the whole image, resized. Mean and std are not included: they are folded into the weights.
    """

    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "squash"

    def __post_init__(self) -> None:
        """Raise ConfigError where a value cannot be used."""
        share = self.crop_pct
        if isinstance(share, bool) or not isinstance(share, int | float) or not MIN_CROP_PCT <= share <= 1:
            raise ConfigError(f"crop_pct should be from {MIN_CROP_PCT} to 1, it is {repr(share)[:99]}.")
        known = {"interpolation": INTERPOLATIONS, "crop_mode": CROP_MODES}
        for key, options in known.items():
            if (value := getattr(self, key)) not in options:
                raise ConfigError(f"{key}: {unknown('value', str(value), options)}")

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Preprocessing:
        """From timm's pretrained_cfg; without crop_pct the whole image is used. Raises SourceError."""
        interpolation, share = config.get("interpolation") or "bicubic", config.get("crop_pct")
        try:
            if share is None:
                return cls(interpolation)
            return cls(interpolation, share, config.get("crop_mode") or "center")
        except ConfigError as error:
            raise SourceError(f"{where}: config.json: {error}") from None

    def differences(self, other: Preprocessing) -> list[str]:
        """Descriptions of what `other` does differently; such differences cannot be folded into weights."""
        pairs = ((key, getattr(self, key), getattr(other, key)) for key in self.__dataclass_fields__)
        return [f"{key} {theirs} instead of {own}" for key, own, theirs in pairs if own != theirs]

    @property
    def files(self) -> Mapping[str, bytes]:
        """Files that a model needs beside it: none."""
        return {}

    def refusals(self, other: Preprocessing) -> list[str]:
        """Why models with these two cannot be merged: never, for images can be resized in any way."""
        return []


PLAIN = Preprocessing()
"""The whole image, resized if its size differs."""
