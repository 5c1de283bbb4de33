"""The image processors of transformers: what each class sets where a preprocessor_config.json leaves keys out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

_BICUBIC = {"resample": 3}
_SHORT = {"size": {"shortest_edge": 224}, "default_to_square": False, "do_center_crop": True, "crop_size": 224}
_CLIP = {**_SHORT, **_BICUBIC, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
_IMAGENET = {**_BICUBIC, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
_MOBILE = {**_SHORT, "size": {"shortest_edge": 256}}

DEFAULTS: dict[str, dict[str, Any]] = {
    "Beit": _BICUBIC,
    "Bit": _CLIP,
    "Blip": {**_BICUBIC, "image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "ConvNext": {**_BICUBIC, "size": {"shortest_edge": 384}, "default_to_square": False, "crop_pct": 224 / 256},
    "DINOv3ViT": {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "DeiT": {**_BICUBIC, "size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224},
    "EfficientNet": {**_BICUBIC, "include_top": True, "crop_size": 289},
    "Levit": {**_SHORT, **_IMAGENET},
    "MobileNetV1": _MOBILE,
    "MobileNetV2": _MOBILE,
    "MobileViT": {**_SHORT, **_BICUBIC, "crop_size": 256, "do_flip_channel_order": True, "do_normalize": False},
    "PoolFormer": {**_SHORT, **_IMAGENET, "crop_pct": 0.9},
    "Pvt": _IMAGENET,
    "Siglip": {**_BICUBIC, "default_to_square": False},
    "ViT": {},
}
"""Start of a class -> its values of missing keys, where they are not those of ViTImageProcessor."""

NAME = re.compile(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?")
WHOLE = 384
"""Short side from which ConvNextImageProcessor resizes whole images."""


def class_of(stated: Mapping[str, Any]) -> str:
    """The start of the class that a file states, such as `CLIP`; empty if it states none."""
    stated_as = stated.get("image_processor_type") or stated.get("feature_extractor_type") or ""
    found = NAME.fullmatch(str(stated_as))
    return found[1] if found else str(stated_as)


def with_class(stated: Mapping[str, Any], start: str) -> Mapping[str, Any]:
    """The same keys; without a class that of the model, as transformers chooses it. Nothing stays nothing."""
    return (
        stated if not stated or class_of(stated) else {**stated, "image_processor_type": f"{start}ImageProcessor"}
    )


def unknown_class(stated: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where the class is another one than those of DEFAULTS."""
    kind = stated.get("image_processor_type") or stated.get("feature_extractor_type")
    if not kind or class_of(stated) in DEFAULTS:
        return ()
    return (
        f"its class {str(kind)[:99]} is not known, so keys that it leaves out are taken as those of "
        "ViTImageProcessor, and what the class does besides is not followed",
    )


def with_defaults(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an image processor, with those that its class sets where they are missing."""
    defaults = DEFAULTS.get(class_of(stated), {})
    given = {key: value for key, value in stated.items() if key not in defaults or value is not None}
    return {**defaults, **given}


def plain(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, with what only one class does as the keys that all classes share.

    ConvNext, PoolFormer and LeViT resize to more than `size` and crop the centre. EfficientNet divides by std
    again, also where it does not normalise (`include_top`).
    """
    found, kind = dict(stated), class_of(stated)
    value = found.get("size")
    short = value.get("shortest_edge") if isinstance(value, Mapping) else value
    share: Any = found.get("crop_pct")
    if kind == "EfficientNet" and found.pop("include_top"):
        return found | _divided_again(found)
    if type(short) is not int or short <= 0 or found.get("do_resize") is False:
        return found
    if kind == "Levit":
        found["size"] = {"shortest_edge": int(256 / 224 * short)}
    if kind not in ("ConvNext", "PoolFormer") or not isinstance(share, float) or not 0 < share <= 1:
        return found
    del found["crop_pct"]
    if kind == "ConvNext" and short >= WHOLE:
        return {**found, "size": {"height": short, "width": short}}
    found["size"] = {"shortest_edge": int(short / share)}
    return found if kind == "PoolFormer" else {**found, "do_center_crop": True, "crop_size": short}


def _divided_again(stated: Mapping[str, Any]) -> dict[str, Any]:
    """(x - mean) / std, divided by std, is (x - mean) / std^2."""
    std = stated.get("image_std", 0.5)
    if stated.get("do_normalize") is False:
        return {"do_normalize": True, "image_mean": 0.0, "image_std": std}
    values = std if isinstance(std, list) else [std]
    if not all(type(value) in (int, float) for value in values):
        return {}  # reported later
    return {"image_std": [value * value for value in values]}
