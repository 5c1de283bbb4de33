"""Inspection of timm VisionTransformer instances: properties, options, and resampled position embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.vit.distilled import has_two_tokens
from fsmerge_cli.architectures.vit.pooling import is_latent
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.common.shown import brief

MAX_DEPTH = 128
"""Most blocks: building a network takes seconds for every hundred, even without weights."""


LOADER_ARGUMENTS = frozenset(
    {"checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
    | {"pretrained_custom_load"}
    | {"scriptable", "exportable", "no_jit", "features_only", "feature_cfg", "pruned", "model_name"}
)
"""Arguments of timm's loader that are not architecture options; some of them would read files."""


TABLES = "its table of relative positions adds to the logits of each head, so that heads cannot be mixed"

WHY = {
    "a Beit": f": {TABLES}",
    "a VisionTransformerRelPos": f": {TABLES}",
    "a NaFlexVit": ": it interpolates its positions for every image, and a merged model has one size of images",
}
"""Classes of timm -> why they cannot be merged, as the end of a sentence."""


def other_class(where: str, name: str, kind: str) -> SourceError:
    """The error for a model of timm of another class. kind: what it is, as in `a Beit`."""
    return SourceError(
        f"{where}: {name} is {kind}, not a plain VisionTransformer, ResNet, VGG or ConvNeXt of timm, and cannot "
        f"be merged{WHY.get(kind, '')}. Use a vit_*, resnet*, vgg* or convnext* model, or write a specification "
        "for it."
    )


def require_depth(args: Mapping[str, Any], where: str) -> None:
    """Raise SourceError for a depth of which no network can be built in a few seconds."""
    depth = args.get("depth", 1)
    if type(depth) is not int or not 1 <= depth <= MAX_DEPTH:
        raise SourceError(
            f"{where}: depth should be a whole number from 1 to {MAX_DEPTH}, it is {brief(depth)}. Change "
            "arch.args, or model_args in config.json."
        )


def refuse_arguments(options: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise ConfigError for an argument of timm's VisionTransformer beside the `known` keys, not in args."""
    from timm.models.vision_transformer import VisionTransformer

    own = inspect.signature(VisionTransformer.__init__).parameters
    if found := [key for key in options if key not in known and key in own]:
        raise ConfigError(
            f"{where}: {found[0]} is an argument of timm and belongs in args: "
            f"args: {{{found[0]}: {brief(options[found[0]])}}}."
        )


def stated_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which timm would build a model from a config.json: model_args and other keys."""
    args = dict(config.get("model_args") or {})
    stated = config.get("pretrained_cfg") or {}
    if config.get("global_pool"):
        args.setdefault("global_pool", config["global_pool"])
    if stated.get("input_size"):
        channels, height, width = stated["input_size"]
        args.setdefault("in_chans", channels)
        if stated.get("fixed_input_size"):
            args.setdefault("img_size", height if height == width else [height, width])
    if config.get("projection"):
        args["num_classes"] = config.get("num_classes")
    return args


def properties(model: Any, projection: bool) -> dict[str, Any]:
    """Properties that all sources have to share; widths and numbers of heads may differ."""
    block = model.blocks[0]
    parts = {
        "attention output norm": getattr(block.attn, "norm", None),
        "MLP norm": getattr(block.mlp, "norm", None),
    }
    parts |= {"q/k norm": getattr(block.attn, "q_norm", None), "LayerScale": block.ls1}
    parts |= {
        "patch norm": model.patch_embed.norm,
        "pre-norm": model.norm_pre,
        "final norm": model.norm,
        "norm after pooling": model.fc_norm,
    }
    names = {name for name, _ in model.named_parameters()}
    height, width = model.patch_embed.img_size
    return {
        "input_size": (model.patch_embed.proj.in_channels, height, width),
        "patch size": tuple(model.patch_embed.patch_size),
        "padded images": _is_padded(model.patch_embed),
        "depth": len(model.blocks),
        "class token": model.has_class_token,
        "distillation token": has_two_tokens(model),
        "register tokens": model.num_reg_tokens,
        "positions": None if model.pos_embed is None else model.pos_embed.shape[1],
        "pooling": f"{model.global_pool}{' with prefix' if model.pool_include_prefix else ''}",
        "norm": f"{type(block.norm1).__name__}(eps={block.norm1.eps})",
        "MLP": f"{type(block.mlp).__name__}{getattr(block.mlp, 'gate_last', '')}",
        "activation": repr(block.mlp.act),
        **{name: part is not None and not isinstance(part, nn.Identity) for name, part in parts.items()},
        "biases": ", ".join(n for n in ("qkv", "proj") if f"blocks.0.attn.{n}.bias" in names)
        + (", patch" if "patch_embed.proj.bias" in names else ""),
        "final projection": projection,
    }


def _is_padded(embed: Any) -> bool:
    """Whether images of the model's own size are padded, because the patches do not divide it."""
    divided = all(side % patch == 0 for side, patch in zip(embed.img_size, embed.patch_size))
    return bool(getattr(embed, "dynamic_img_pad", False)) and not divided


def reasons(model: Any) -> list[str]:
    """Reasons why a variant cannot be merged."""
    from timm.layers.attention import Attention
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import Block

    block = model.blocks[0]
    found = []
    if type(block) is not Block:
        return [f"{type(block).__name__}: only blocks of attention, then MLP, each after its norm, can be merged"]
    if model.attn_pool is not None and not is_latent(model):
        found.append(
            f"{type(model.attn_pool).__name__} (global_pool={model.global_pool}): only attention pooling with a "
            "latent query (map) can be merged"
        )
    if model.global_pool == "":
        found.append("no pooling (global_pool=''): its features are one vector per token, not per image")
    normed = not isinstance(model.fc_norm, nn.Identity)
    if has_two_tokens(model) and (model.no_embed_class or model.num_reg_tokens or normed):
        found.append(
            "a distillation token beside register tokens, no_embed_class or a norm after the pooling: timm's "
            "class does not run these"
        )
    if type(block.attn) is not Attention:
        found.append(f"{type(block.attn).__name__}: only timm's plain multi-head Attention can be merged")
    elif block.attn.gate is not None:
        found.append("gated attention: its gate mixes the values' space with the residual stream")
    elif not any(hasattr(block.mlp, name) for name in ("fc1", "fc1_g")):
        found.append(f"{type(block.mlp).__name__}: only Mlp, GluMlp and SwiGLU can be merged")
    if type(model.patch_embed) is not PatchEmbed:
        found.append(f"{type(model.patch_embed).__name__}: only a plain patch projection can be merged")
    return found


def _require_plain_blocks(model: Any) -> None:
    from timm.models.vision_transformer import Block

    if type(model.blocks[0]) is not Block:
        raise SourceError(f"this module cannot be merged: {reasons(model)[0]}.")


def arguments(model: Any) -> dict[str, Any]:
    """Keyword arguments for timm that give this model's sizes and flags; layer types follow from its timm name.

    Raises SourceError for other blocks than timm's `Block`.
    """
    _require_plain_blocks(model)
    block, embed = model.blocks[0], model.patch_embed
    first = getattr(block.mlp, "fc1", None) or block.mlp.fc1_g
    scaled = not isinstance(block.ls1, nn.Identity)
    return {
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": first.out_features / model.embed_dim,
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "scale_attn_norm": not isinstance(block.attn.norm, nn.Identity),
        "scale_mlp_norm": not isinstance(block.mlp.norm, nn.Identity),
        "proj_bias": block.attn.proj.bias is not None,
        "init_values": 1.0 if scaled else None,
        "class_token": bool(model.has_class_token),
        "pos_embed": "none" if model.pos_embed is None else "learn",
        "no_embed_class": bool(model.no_embed_class),
        "reg_tokens": model.num_reg_tokens,
        "pre_norm": not isinstance(model.norm_pre, nn.Identity),
        "final_norm": not all(isinstance(norm, nn.Identity) for norm in (model.norm, model.fc_norm)),
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "pool_include_prefix": bool(model.pool_include_prefix),
        "dynamic_img_size": bool(model.dynamic_img_size),
        "dynamic_img_pad": bool(embed.dynamic_img_pad),
    }


def eps_of(model: Any) -> float:
    """The eps of the norms in the blocks."""
    return float(model.blocks[0].norm1.eps)


def other_eps(built: nn.Module, own: nn.Module) -> bool:
    """Whether some part of `own` has another eps than the part of the same name in `built`."""
    known = {name: getattr(part, "eps", None) for name, part in built.named_modules()}
    return any(
        getattr(part, "eps", None) != known.get(name) for name, part in own.named_modules() if name in known
    )


def differences(built: nn.Module, own: nn.Module, projection: bool) -> list[str]:
    """Properties in which a module differs from the one built for it."""
    stated, found = properties(built, projection), properties(own, projection)
    different = [key for key, value in found.items() if stated[key] != value]
    return different or (["eps"] if other_eps(built, own) else [])


def set_eps(module: nn.Module, eps: float) -> nn.Module:
    """Set this eps in all norms of `module`, in place; returns it."""
    part: Any
    for part in module.modules():
        if hasattr(part, "eps"):
            part.eps = eps
    return module


def resampled(
    weights: Mapping[str, Tensor], table: str, prefix: int, old: tuple[int, int], new: tuple[int, int]
) -> dict[str, Tensor]:
    """Weights with position embeddings `table` resampled by timm from the grid `old` to `new` (patches).

    prefix: number of rows for class and register tokens before those of the patches, which are kept.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    own = weights[table]
    if own.ndim != 3 or own.shape[1] != prefix + old[0] * old[1]:
        return dict(weights)  # does not match its architecture; compile_plan reports it
    if own.is_meta:
        rows = prefix + new[0] * new[1]
        return {**weights, table: torch.empty(len(own), rows, own.shape[2], device="meta")}
    return {**weights, table: resample_abs_pos_embed(own, list(new), list(old), prefix)}
