"""DINOv3 of Hugging Face as timm's Eva: options and tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.checkpoints.renaming import joined
from fsmerge_cli.checkpoints.vit_names import SIZES
from fsmerge_cli.checkpoints.vit_shapes import ask_heads, mlp_ratio
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief

TEMPERATURE = 100.0
"""Of the rotary positions of timm's models: `rope_theta` of Hugging Face."""

ALIGNED = 8
"""The hidden units of timm's gated MLP are rounded up to a multiple of this."""

PUBLISHED_SIZE = 224
"""Height and width of the images in the published files, in pixels."""

DEFAULTS = {"num_attention_heads": 6, "image_size": PUBLISHED_SIZE}
"""Of a config.json that leaves these keys out."""

QKV = ("q", "k", "v")


def of_eva(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors as timm's Eva has them, of a file whose layers are called q_proj, k_proj, v_proj, up, gate, fc2.

    Queries, keys and values become one weight, with biases of queries and values; they stay three layers where
    keys have a bias, which depends on the position once it is turned. A bias that is missing beside others is 0.
    """
    gated = any(".mlp.gate." in name for name in tensors)
    found = {name.replace(".mlp.gate.", ".mlp.fc1_g."): tensor for name, tensor in tensors.items()}
    found = {name.replace(".mlp.up.", ".mlp.fc1_x." if gated else ".mlp.fc1."): t for name, t in found.items()}
    if "reg_token" in found and found["reg_token"].ndim == 3 and not found["reg_token"].shape[1]:
        del found["reg_token"]
    biased = {part for part in QKV if any(name.endswith(f".attn.{part}_proj.bias") for name in found)}
    for name in [name for name in found if re.search(r"\.(attn\.proj|mlp\.\w+)\.weight$", name)]:
        found.setdefault(f"{name.removesuffix('weight')}bias", _zeros(found[name]))
    for name in [name for name in found if name.endswith(".attn.q_proj.weight")]:
        _attention(found, name.removesuffix("q_proj.weight"), biased, where)
    return found


def _attention(found: dict[str, Tensor], owner: str, biased: set[str], where: str) -> None:
    """Replace the tensors of one attention, in place. owner: their names up to `q_proj`."""
    if any(f"{owner}{part}_proj.weight" not in found for part in QKV):
        return  # reported later
    weights = [found[f"{owner}{part}_proj.weight"] for part in QKV]
    if "k" in biased:
        for part, weight in zip(QKV, weights):
            found.setdefault(f"{owner}{part}_proj.bias", _zeros(weight))
        return
    found[f"{owner}qkv.weight"] = joined(weights, f"{owner}qkv.weight", where)
    for part, weight in zip(QKV, weights):
        del found[f"{owner}{part}_proj.weight"]
        bias = found.pop(f"{owner}{part}_proj.bias", None)
        if biased and part != "k":
            found[f"{owner}{part}_bias"] = _zeros(weight) if bias is None else bias


def _zeros(weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape[:1], dtype=weight.dtype, device=weight.device)


def architecture(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`architecture` and `model_args` of timm's config.json, for tensors of `of_eva`. Raises SourceError."""
    own = {**(DEFAULTS if "model_type" in config else {}), **config}
    width, channels, *patch = tensors["patch_embed.proj.weight"].shape
    gated = "blocks.0.mlp.fc1_g.weight" in tensors
    hidden = tensors[f"blocks.0.mlp.{'fc1_g' if gated else 'fc1'}.weight"].shape[0]
    depth = len({found[1] for n in tensors if (found := re.match(r"blocks\.(\d+)\.", n))})
    heads = own.get("num_attention_heads") or SIZES.get((width, depth), ("", None))[1]
    if heads is None:
        raise SourceError(ask_heads(f"{where} (DINOv3)", width))
    _require_activation(own, gated, where)
    args: dict[str, Any] = {
        "img_size": own.get("image_size") or PUBLISHED_SIZE,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(hidden, width),
        "num_reg_tokens": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "global_pool": "token",
    }
    if gated and hidden % ALIGNED:
        args["swiglu_align_to"] = 1
    theta = own.get("rope_theta", TEMPERATURE)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < float("inf"):
        raise SourceError(f"{where}: rope_theta in config.json should be a number above 0, it is {brief(theta)}.")
    if theta != TEMPERATURE:
        args["rope_temperature"] = float(theta)
    biased = "blocks.0.attn.q_bias" in tensors
    if "blocks.0.attn.k_proj.bias" in tensors:
        args |= {"attn_type": "rope", "qkv_fused": False, "qkv_bias": True}
        biased = True
    return {"architecture": _name(width, depth, gated, biased), "model_args": args}


def _require_activation(config: Mapping[str, Any], gated: bool, where: str) -> None:
    """Raise SourceError for an activation that timm's Eva does not have."""
    act = config.get("hidden_act", "silu" if gated else "gelu")
    known = ("silu", "swish") if gated else ("gelu",)
    if act not in known:
        kind = "a gated MLP" if gated else "an MLP"
        raise SourceError(
            f"{where}: hidden_act in config.json is {brief(act)}; {kind} of timm's DINOv3 has {known[0]}. "
            "Only that can be merged."
        )


def _name(width: int, depth: int, gated: bool, biased: bool) -> str:
    """Timm's name of the published model of this size, else that of the small one."""
    from timm.models import is_model

    size, kind = SIZES.get((width, depth), ("small", None))[0], "_qkvb" if biased else ""
    plus = "_plus" if gated else ""
    own = f"vit_{size}{plus}_patch16_dinov3{kind}"
    return own if is_model(own) else f"vit_small{plus}_patch16_dinov3{kind}"
