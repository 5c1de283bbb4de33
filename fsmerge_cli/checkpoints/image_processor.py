"""Hugging Face's preprocessor_config.json as the keys of timm's pretrained_cfg.

The order there: resize, crop the centre, rescale (by 1 / 255), normalise. What has no equal here is named in a
note; what would change the order of the channels is refused.
(An odd margin of a crop is halved downwards there and upwards here, as in timm: one pixel.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsmerge_cli.checkpoints.files import MAX_CONFIG_VALUE, read_config
from fsmerge_cli.checkpoints.processor_classes import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    plain,
    unknown_class,
    with_defaults,
)
from fsmerge_cli.common.errors import SourceError

FILES = ("preprocessor_config.json", "processor_config.json")
"""The second is read, in its key `image_processor`, where the first is missing."""

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""PIL's numbers of the filters for resampling."""

FOLLOWED = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
"""The flags that are followed; images are always converted to the channels of the model."""

UNFOLLOWED = {"crop_pct", "size_divisor", "channel_order"}
"""Further keys that change the pixels of some processors."""

OFFSETS = ("rescale_offset", "offset")
"""Flags that subtract 1 after rescaling."""

LEVELS = 255
"""Largest value of a pixel before rescaling."""

IMAGENET_PIXELS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CLIP_PIXELS = {
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
HALF = {"mean": [0.5], "std": [0.5], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
"""Of the published ViTs, where nothing else is known."""

Size = tuple[int, int]


def read_processor(path: Path, where: str) -> dict[str, Any]:
    """The image processor in a folder (or next to a file); empty if there is none. Raises SourceError."""
    found = read_config(path, where, FILES[0])
    if not found:
        found = read_config(path, where, FILES[1]).get("image_processor") or {}
    if not isinstance(found, dict):
        raise SourceError(f"{where}: image_processor in {FILES[1]} should be an object, it is {str(found)[:99]}.")
    return found


OPEN_CLIP = "open_clip_config.json"


def read_open_clip(path: Path, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The preprocessing in the open_clip_config.json of a folder, under timm's keys, and notes.

    Empty if it states no mean. In evaluation open_clip takes bicubic for all filters but bilinear.
    """
    stated = read_config(path, where, OPEN_CLIP).get("preprocess_cfg")
    if not isinstance(stated, dict) or not stated.get("mean"):
        return {}, ()
    mode, filter_ = stated.get("resize_mode") or "shortest", stated.get("interpolation")
    found = {
        **CLIP_PIXELS,
        **{key: stated[key] for key in ("mean", "std") if key in stated},
        "interpolation": "bilinear" if filter_ == "bilinear" else "bicubic",
        "crop_mode": "squash" if mode == "squash" else "center",
    }
    if mode in ("shortest", "squash"):
        return found, ()
    return found, (f"{OPEN_CLIP}: resize_mode={str(mode)[:99]} is not followed: the centre of an image is used",)


def timm_keys(stated: Mapping[str, Any], channels: int, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys mean, std, interpolation, crop_pct, crop_mode (and input_size) of an image processor, and notes.

    channels: of the model. Raises SourceError where a value cannot be used.
    """
    where = f"{where}: {FILES[0]}"
    notes_on_class = unknown_class(stated)
    stated = plain(with_defaults(stated))
    if _flag(stated, "do_flip_channel_order", False, where):
        raise SourceError(
            f"{where}: do_flip_channel_order is true, so the model reads the channels as blue, green, red. Flip "
            "the input channels of its patch projection, save it again, and set the key to false."
        )
    mean, std = _normalisation(stated, where)
    geometry, notes = _geometry(stated, where)
    size = geometry.pop("size", None)
    unknown = [
        key
        for key in sorted(stated)
        if ((key.startswith("do_") and key not in FOLLOWED) or key in UNFOLLOWED) and stated[key]
    ]
    notes = (*notes_on_class, *notes, *(f"{key} is not followed" for key in unknown))
    found = {"mean": mean, "std": std, "interpolation": _filter(stated, where), **geometry}
    return found | ({} if size is None else {"input_size": [channels, *size]}), notes


def _normalisation(stated: Mapping[str, Any], where: str) -> tuple[list[float], list[float]]:
    """Mean and std for pixels in 0..1: those of the file are applied to rescaled pixels."""
    factor = float(LEVELS)
    if _flag(stated, "do_rescale", True, where):
        value = stated.get("rescale_factor")
        factor *= _number(1 / LEVELS if value is None else value, "rescale_factor", where)
    if factor <= 0:
        raise SourceError(f"{where}: rescale_factor should be above 0, it is {stated['rescale_factor']}.")
    shift = 1.0 if any(_flag(stated, key, False, where) for key in OFFSETS) else 0.0
    if not _flag(stated, "do_normalize", True, where):
        return [shift / factor], [1 / factor]
    mean, std = _numbers(stated, "image_mean", where), _numbers(stated, "image_std", where)
    return [(value + shift) / factor for value in mean], [value / factor for value in std]


def _geometry(stated: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys crop_pct, crop_mode and `size` (height, width; absent: not stated), and notes."""
    whole: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "squash"}
    crop = _size(stated, "crop_size", where) if _flag(stated, "do_center_crop", False, where) else None
    if crop is None and _flag(stated, "do_center_crop", False, where):
        return whole, (
            f"do_center_crop with crop_size={stated.get('crop_size')} is not followed: whole images are resized",
        )
    if not _flag(stated, "do_resize", True, where):
        return whole, ("do_resize=false is not followed: images of another size are resized",)
    if "size" not in stated:
        return whole, () if crop is None else (
            f"crop_size={stated['crop_size']} without size is not followed: whole images are resized",
        )
    resized, short = _size(stated, "size", where), _short_side(stated, where)
    if short is not None and crop is None:
        note = f"size={{shortest_edge: {short}}} without a crop: the centre of an image that is not square is used"
        return {"crop_pct": 1.0, "crop_mode": "center", "size": (short, short)}, (note,)
    if short is not None and crop is not None and crop[0] == crop[1] <= short:
        return {"crop_pct": _share(crop[0], short), "crop_mode": "center", "size": crop}, ()
    if resized is not None and crop is None:
        return {**whole, "size": resized}, ()
    if resized is not None and crop is not None:
        shares = [_share(own, full) for own, full in zip(crop, resized)]
        if shares[0] == shares[1] <= 1:
            return {"crop_pct": shares[0], "crop_mode": "squash", "size": crop}, ()
    keys = f"size={stated['size']}" + (f" with crop_size={stated.get('crop_size')}" if crop else "")
    return whole | ({"size": crop} if crop else {}), (f"{keys} is not followed: whole images are resized",)


def _share(own: int, full: int) -> float:
    """crop_pct, from which the size before the crop is computed as floor(own / crop_pct)."""
    share = own / full
    return share if math.floor(own / share) == full else own / (full + 0.5)


def _size(stated: Mapping[str, Any], key: str, where: str) -> Size | None:
    """Height and width; None if the key states something else."""
    value = stated.get(key)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if key == "crop_size" or _is_square(stated):
        value = {"height": value, "width": value} if type(value) is int else value
    if not isinstance(value, Mapping) or not {"height", "width"} <= value.keys():
        return None
    sides = value["height"], value["width"]
    if all(side is None for side in sides):
        return None
    if not all(type(side) is int and side > 0 for side in sides):
        raise SourceError(f"{where}: {key} should be in whole pixels, it is {value}.")
    return sides


def _short_side(stated: Mapping[str, Any], where: str) -> int | None:
    value = stated.get("size")
    if type(value) is int and not _is_square(stated):
        value = {"shortest_edge": value}
    if not isinstance(value, Mapping) or {key for key, own in value.items() if own is not None} != {
        "shortest_edge"
    }:
        return None
    short = value["shortest_edge"]
    if type(short) is not int or short <= 0:
        raise SourceError(f"{where}: size should be in whole pixels, it is {value}.")
    return short


def _is_square(stated: Mapping[str, Any]) -> bool:
    """Whether one number as `size` is both sides (as for ViT), not the short one (as for CLIP)."""
    return bool(stated.get("default_to_square", True))


def _filter(stated: Mapping[str, Any], where: str) -> str:
    value = stated.get("resample")
    if value is None:  # of ViTImageProcessor
        return "bilinear"
    if type(value) is not int or value not in FILTERS:
        listed = ", ".join(f"{number} ({name})" for number, name in FILTERS.items())
        raise SourceError(f"{where}: resample should be one of {listed}, it is {str(value)[:99]!r}.")
    return FILTERS[value]


def _flag(stated: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = stated.get(key)
    if value is not None and not isinstance(value, bool):
        raise SourceError(f"{where}: {key} should be true or false, it is {str(value)[:99]!r}.")
    return default if value is None else value


def _numbers(stated: Mapping[str, Any], key: str, where: str) -> list[float]:
    value = stated.get(key, 0.5)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise SourceError(f"{where}: {key} should consist of finite numbers, it is empty.")
    return [_number(own, key, where) for own in values]


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_CONFIG_VALUE:
        raise SourceError(f"{where}: {key} should consist of finite numbers, it contains {str(value)[:99]!r}.")
    return float(value)
