"""The preprocessing of images of third-party files, under timm's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmerge_cli.checkpoints.image_processor import CLIP_PIXELS, HALF, IMAGENET_PIXELS, timm_keys
from fsmerge_cli.checkpoints.key_tables import (
    DEIT,
    DEIT_DISTILLED,
    DINOV2,
    DINOV3,
    SIGLIP,
    TORCHVISION,
    TRUNK,
    Layout,
)
from fsmerge_cli.checkpoints.processor_classes import with_class, with_defaults


def stated_pixels(
    layout: Layout, config: Mapping[str, Any], channels: int, where: str
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Preprocessing under timm's keys, notes where mean and std are a guess, and notes on what is not followed."""
    advice = "if it was trained with other values, pass models.sources.N.mean=[...] and std=[...]"
    if layout is TRUNK:
        return dict(CLIP_PIXELS), (), ()
    if layout is TORCHVISION:
        guess = {**IMAGENET_PIXELS, "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center"}
        return guess, (f"mean and std are assumed to be those of torchvision's public weights; {advice}",), ()
    stated = with_class(config.get("preprocessor") or {}, layout.processor)
    if not stated and layout in (DEIT, DEIT_DISTILLED, DINOV2, DINOV3):
        text = "no preprocessor_config.json, so mean and std are assumed to be those of ImageNet"
        return {**IMAGENET_PIXELS, "interpolation": "bicubic"}, (f"{text}; {advice}",), ()
    if not stated:
        half = {**HALF, "interpolation": "bicubic"} if layout is SIGLIP else dict(HALF)
        return half, (f"no preprocessor_config.json, so mean and std are assumed to be 0.5; {advice}",), ()
    found, notes = timm_keys(stated, channels, where)
    known = with_defaults(stated)
    missing = [key for key in ("image_mean", "image_std") if key not in known and known.get("do_normalize", True)]
    assumed = f"preprocessor_config.json has no {' and no '.join(missing)}, assumed to be 0.5; {advice}"
    return found, (assumed,) if missing else (), notes
