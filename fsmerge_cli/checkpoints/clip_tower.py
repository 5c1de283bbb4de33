"""CLIP vision towers under the names of OpenAI, open_clip and Hugging Face, converted to timm's by timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief

NAMES = {"quick_gelu": "vit_base_patch16_clip_quickgelu_224", "gelu": "vit_base_patch16_clip_224"}
"""Hugging Face's activation of a tower -> a model of timm with it."""

EPS = 1e-5
"""eps of the norms of timm's towers."""

BLOCK = "transformer.resblocks"


def require_tower_head(config: Mapping[str, Any], where: str) -> None:
    """Raise SourceError for a classifier that reads something else than the class token."""
    if "CLIPForImageClassification" in (config.get("architectures") or ()):
        raise SourceError(
            f"{where} is a CLIPForImageClassification, whose classifier reads the mean of the patches before the "
            "last norm, which no model of timm does. Save the tower alone "
            "(model.vision_model.save_pretrained(FOLDER)) and train a head on it: fsmerge finetune "
            "model.checkpoint=FOLDER training.steps=0"
        )


def tower_architecture(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The architecture of a tower of Hugging Face for timm's config.json. Raises SourceError.

    tensors: under OpenAI's names. config: its config.json, also that of the whole CLIP.
    """
    own = config.get("vision_config") or config
    act = own.get("hidden_act", "quick_gelu")
    if act not in NAMES:
        raise SourceError(
            f"{where}: hidden_act in config.json is {brief(act)}; a CLIP tower of timm has {' or '.join(NAMES)}."
        )
    try:
        (width, channels, *patch), hidden = (
            tensors["conv1.weight"].shape,
            tensors[f"{BLOCK}.0.mlp.c_fc.bias"].shape,
        )
        rows, columns = patch
    except (KeyError, ValueError):
        raise SourceError(
            f"{where} looks like Hugging Face's CLIPVisionModel, but lacks some of its tensors. Download it again."
        ) from None
    args = {
        "img_size": own.get("image_size", 224),
        "patch_size": rows if rows == columns else [rows, columns],
        "in_chans": channels,
        "embed_dim": width,
        "depth": len({found[1] for n in tensors if (found := re.match(rf"{BLOCK}\.(\d+)\.", n))}),
        "num_heads": own.get("num_attention_heads", 12),
        "mlp_ratio": hidden[0] / width,
    }
    eps = own.get("layer_norm_eps", EPS)
    return {"architecture": NAMES[act], "model_args": args, **({} if eps == EPS else {"eps": eps})}


def of_tower(tensors: Mapping[str, Tensor], model: Any, where: str) -> dict[str, Tensor]:
    """The tower converted by timm, after a check of its sizes: timm would resample patches and positions."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    patch, table = tensors.get("conv1.weight"), tensors.get("positional_embedding")
    if patch is None or table is None or patch.ndim != 4 or table.ndim != 2:
        raise SourceError(
            f"{where} looks like a CLIP vision tower, but lacks some of its tensors. Download it again."
        )
    expected = [*model.patch_embed.patch_size], model.pos_embed.shape[1], model.embed_dim
    found = [*patch.shape[2:]], *table.shape
    if found != expected:
        raise SourceError(
            f"{where}: a CLIP tower with patches of {found[0]}, {found[1]} positions and width {found[2]}; "
            f"models.sources.N.arch has {expected[0]}, {expected[1]} and {expected[2]}. "
            "Choose the matching timm name."
        )
    return dict(checkpoint_filter_fn({f"visual.{n}": t for n, t in tensors.items()}, model))
