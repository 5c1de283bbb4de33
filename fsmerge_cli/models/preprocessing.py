"""Preprocessing of an image before it is input to a model, except what is folded into weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsmerge_cli.common.errors import SourceError, unknown

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

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Preprocessing:
        """From timm's pretrained_cfg; without crop_pct the whole image is used. Raises SourceError."""
        interpolation, share = config.get("interpolation") or "bicubic", config.get("crop_pct")
        if share and (
            isinstance(share, bool) or not isinstance(share, int | float) or not MIN_CROP_PCT <= share <= 1
        ):
            raise SourceError(
                f"{where}: crop_pct in config.json should be from {MIN_CROP_PCT} to 1, it is {share!r}."
            )
        found = cls(interpolation, share, config.get("crop_mode") or "center") if share else cls(interpolation)
        for value, known, key in (
            (found.interpolation, INTERPOLATIONS, "interpolation"),
            (found.crop_mode, CROP_MODES, "crop_mode"),
        ):
            if value not in known:
                raise SourceError(f"{where}: {key} in config.json: {unknown('value', str(value), known)}")
        return found

    def differences(self, other: Preprocessing) -> list[str]:
        """Descriptions of what `other` does differently; such differences cannot be folded into weights."""
        pairs = ((key, getattr(self, key), getattr(other, key)) for key in self.__dataclass_fields__)
        return [f"{key} {theirs} instead of {own}" for key, own, theirs in pairs if own != theirs]


PLAIN = Preprocessing()
"""The whole image, resized if its size differs."""
