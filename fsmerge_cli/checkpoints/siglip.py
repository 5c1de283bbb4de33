"""SigLIP's vision tower of Hugging Face as timm's VisionTransformer with attention pooling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsmerge_cli.common.errors import SourceError

DEFAULTS = {"num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh"}
"""Of a config.json that leaves these keys out; the public files of SigLIP state only `model_type`."""

KEYS = ("image_size", "num_attention_heads", "hidden_act", "layer_norm_eps")
"""Of the vision tower; the others (labels, classes) are those of the model."""

CLASSIFIER = "SiglipForImageClassification"
"""A model whose classifier reads the mean of the patches, and whose attention pooling is not used."""

NAFLEX = (
    "SigLIP 2 for images of any shape (NaFlex), whose positions are interpolated for every image. Only models of "
    "one size of images can be merged: take a checkpoint of a fixed resolution (siglip2-*-patch16-256), which "
    "transformers reads as SigLIP"
)
"""What is refused."""

MEAN = {"global_pool": "avg", "fc_norm": False}
"""timm's arguments for the mean of the patches behind the last norm."""


def with_vision(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the vision tower beside those of the model, with the defaults of their class."""
    stated = config.get("vision_config")
    own = {key: stated[key] for key in KEYS if key in stated} if isinstance(stated, Mapping) else {}
    return {**(DEFAULTS if "model_type" in config else {}), **config, **own}


def of_timm(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str
) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """Tensors as timm has them, its arguments for the pooling, and notes.

    tensors: positions [N, D], and q, k and v of the pooling in one weight. Raises SourceError for NaFlex.
    """
    found = dict(tensors)
    patches, positions = found.get("patch_embed.proj.weight"), found.get("pos_embed")
    if patches is not None and patches.ndim == 2:
        raise SourceError(f"{where} contains {NAFLEX}.")
    if positions is not None and positions.ndim == 2:
        found["pos_embed"] = positions[None]
    has_pooling = "attn_pool.latent" in found
    averaged = CLASSIFIER in (config.get("architectures") or ()) or config.get("global_pool") == "avg"
    for part in ("weight", "bias"):
        own = found.pop(f"attn_pool.qkv.{part}", None)
        if own is not None:
            size = len(own) // 3
            found[f"attn_pool.q.{part}"], found[f"attn_pool.kv.{part}"] = own[:size], own[size:]
    if has_pooling and not averaged:
        return found, {"class_token": False, "global_pool": "map"}, ()
    notes: tuple[str, ...] = ("it has no attention pooling, so the mean of its patches is taken as features",)
    if has_pooling:
        notes = ("its classifier reads the mean of the patches; its attention pooling is not used",)
    kept = {name: tensor for name, tensor in found.items() if not name.startswith("attn_pool.")}
    return kept, {"class_token": False, **MEAN}, notes
