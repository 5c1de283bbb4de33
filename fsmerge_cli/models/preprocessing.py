"""What happens to an image before a model reads it, as far as it cannot be folded into weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsmerge_cli.common.errors import SourceError, unknown

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
