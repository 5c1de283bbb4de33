"""Translation of third-party files: tensors under timm's names, and the keys of timm's config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.architectures.vit.arch import BASE, DISTILLED_BASE
from fsmerge_cli.architectures.vit.distilled import one_head
from fsmerge_cli.checkpoints import siglip
from fsmerge_cli.checkpoints.accounting import require_stated
from fsmerge_cli.checkpoints.clip_tower import of_tower, require_tower_head, tower_architecture
from fsmerge_cli.checkpoints.dinov2_code import of_timm
from fsmerge_cli.checkpoints.dinov3 import architecture as dinov3_architecture
from fsmerge_cli.checkpoints.dinov3 import of_eva
from fsmerge_cli.checkpoints.image_processor import CLIP_PIXELS
from fsmerge_cli.checkpoints.key_tables import (
    ACTIVATIONS,
    CLIP,
    DEIT_DISTILLED,
    DINOV2,
    DINOV3,
    SIGLIP,
    TRANSFORMERS_CLIP,
    TRUNK,
    Layout,
)
from fsmerge_cli.checkpoints.prefixes import Stripped, ignored_notes, strip
from fsmerge_cli.checkpoints.renaming import renamed
from fsmerge_cli.checkpoints.translated_pixels import stated_pixels
from fsmerge_cli.checkpoints.vit_names import SIZES
from fsmerge_cli.checkpoints.vit_shapes import ask_heads, mlp_ratio
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief

SWIGLU = "vit_giant_patch14_dinov2"
"""The model of timm with the gated MLP of DINOv2."""


@dataclass(frozen=True)
class Translation:
    """The tensors of a file under timm's names, its heads, and keys of config.json inferred from the format.

    heads, beside, rest, prefix: as in `Stripped`. guess: a note on a normalisation that the file does not state.
    clip: the tensors of a CLIP tower, which are translated once the architecture is known (None: no CLIP tower).
    """

    tensors: Mapping[str, Tensor]
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    guess: tuple[str, ...] = ()
    clip: Mapping[str, Tensor] | None = None
    prefix: str = ""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    rest: Mapping[str, Tensor] = field(default_factory=dict)

    def under(self, model: Any, where: str) -> dict[str, Tensor]:
        """The tensors for `model` (an instance without weights). Raises SourceError if its sizes differ."""
        return dict(self.tensors) if self.clip is None else of_tower(self.clip, model, where)


def translate(
    layout: Layout,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    where: str,
    name: str,
    selection: tuple[str | None, bool | None, str | None] = (None, None, None),
    has_arch: bool = False,
) -> Translation:
    """Tensors of a third-party file under timm's names. Raises SourceError.

    name: of the source, for notes. selection: prefix, ema and head of its entry. has_arch: whether the entry has
    an architecture, so that it need not be inferred from the file.
    """
    tensors = _one_head(tensors) if layout is DEIT_DISTILLED else tensors
    found = strip(tensors, layout.anchor, where, *selection)
    notes = tuple(f"'{name}': {note}" for note in found.notes)
    if layout is CLIP:
        return _tower(found, config, where, name, notes, has_arch)
    named = renamed(layout.keys, found.tensors, where)
    if layout is TRANSFORMERS_CLIP:
        require_tower_head(config, where)
        projection = next((own for key, own in tensors.items() if key.endswith("visual_projection.weight")), None)
        tower = replace(found, tensors=named if projection is None else {**named, "proj": projection.T})
        known = not has_arch and config.get("model_type") in layout.types
        architecture = tower_architecture(named, config, where) if known else {}
        return _tower(tower, config, where, name, notes, has_arch, architecture)
    pooling: Mapping[str, Any] = {}
    if layout is DINOV3:
        named = of_eva(named, where)
    if layout is SIGLIP:
        config = siglip.with_vision(config)
        named, pooling, more = siglip.of_timm(named, config, where)
        notes += tuple(f"'{name}': {text}" for text in more)
        found = replace(found, rest={n: t for n, t in found.rest.items() if not re.match(OTHER_TOWER, n)})
    if layout is DINOV2:
        named = of_timm(named)
        _require_class_token(found.heads, named, where)
    stated: dict[str, Any] = {}
    if layout is TRUNK:
        if named.get("head.weight", torch.empty(0)).ndim == 2:
            named.setdefault("head.bias", torch.zeros(len(named["head.weight"])))
            stated |= {"projection": True, "num_classes": len(named["head.weight"])}
    elif "architecture" not in config:
        if not has_arch:
            stated |= _architecture(layout, named, config, where, pooling)
            notes += tuple(f"'{name}': {text}" for text in _guesses(layout, stated["model_args"], config))
        elif layout.types and "layer_norm_eps" in config:
            stated["eps"] = _eps(layout, config, where)
    patches = named.get("patch_embed.proj.weight", torch.empty(0))
    channels = patches.shape[1] if patches.ndim == 4 else 3
    stated["pretrained_cfg"], guess, deviations = stated_pixels(layout, config, channels, where)
    notes += tuple(f"'{name}': preprocessor_config.json: {text}" for text in deviations)
    notes = (*notes, *ignored_notes(found, name))
    eps = stated.get("eps")
    if eps is not None and eps != layout.timm_eps:
        own_eps = f"those of the merged model have timm's {layout.timm_eps:g}"
        notes += (f"'{name}': its norms have eps={eps:g}, {own_eps}",)
    guess = tuple(f"'{name}': {text}" for text in guess)
    own = found.prefix, found.beside, found.rest
    return Translation(named, found.heads, stated, notes, guess, None, *own)


def _one_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a DeiT of Hugging Face with one head `classifier` in place of those on its two tokens."""
    ends = ("cls_classifier", "distillation_classifier")
    start = next(name for name in tensors if f"{ends[1]}." in name).partition(ends[1])[0]
    return one_head(tensors, [f"{start}{end}" for end in ends], f"{start}classifier")


def _require_class_token(
    heads: Mapping[str, Mapping[str, Tensor]], named: Mapping[str, Tensor], where: str
) -> None:
    """Raise SourceError for a classifier of Dinov2ForImageClassification."""
    width = named["cls_token"].shape[-1] if "cls_token" in named else 0
    if any(own["weight"].shape[-1:] == (2 * width,) for own in heads.values() if "weight" in own):
        raise SourceError(
            f"{where} is a classifier on the class token of a DINOv2 beside the mean of its patches, and the "
            "features of a merged model are one of them. Save the backbone alone "
            "(model.dinov2.save_pretrained(FOLDER)) and train a head on it: fsmerge finetune "
            "model.checkpoint=FOLDER training.steps=0"
        )


OTHER_TOWER = r"text_model\.|logit_(scale|bias)$"
"""Tensors of the text tower of SigLIP, which is not read."""


def _architecture(
    layout: Layout,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    where: str,
    pooling: Mapping[str, Any],
) -> dict[str, Any]:
    """The architecture for timm's config.json, inferred from shapes (and Hugging Face's own config.json).

    pooling: timm's arguments for it, where they are not those of a class token.
    """
    try:
        if layout is DINOV3:
            return {**dinov3_architecture(tensors, config, where), "eps": _eps(layout, config, where)}
        width, chans, *patch = tensors["patch_embed.proj.weight"].shape
        rows, cols = patch
        registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
        without = layout is SIGLIP or (layout is DINOV2 and registers > 0)
        others = 1 + registers + ("dist_token" in tensors)
        positions = tensors["pos_embed"].shape[1] - (0 if without else others)
        ratio = mlp_ratio(tensors["blocks.0.mlp.fc1.weight"].shape[0], width)
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise SourceError(
            f"{where} looks like {layout.title}, but lacks some of its tensors. Download or save it again."
        ) from None
    depth = len({found[1] for n in tensors if (found := re.match(r"blocks\.(\d+)\.", n))})
    if layout.types:
        bias = "blocks.0.attn.qkv.bias" in tensors
        shown_by = {"num_hidden_layers": depth, "hidden_size": width, "num_channels": chans, "qkv_bias": bias}
        require_stated(config, {**shown_by, **({"patch_size": rows} if rows == cols else {})}, where)
    side = math.isqrt(max(positions, 0))
    size = config.get("image_size") or [side * rows, side * cols]
    heads = config.get("num_attention_heads") or SIZES.get((width, depth), ("", None))[1]
    if heads is None:
        raise SourceError(ask_heads(f"{where} ({layout.title})", width))
    args: dict[str, Any] = {"img_size": size, "patch_size": rows if rows == cols else [rows, cols]}
    args |= {
        "in_chans": chans,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": ratio,
        **pooling,
    }
    if "blocks.0.attn.qkv.bias" not in tensors:
        args["qkv_bias"] = False
    if registers:
        args |= {"reg_tokens": registers, "no_embed_class": layout is DINOV2}
    if "blocks.0.ls1.gamma" in tensors:
        args["init_values"] = 1.0
    if not layout.types:
        return {"architecture": BASE, "model_args": args}
    base = DISTILLED_BASE if layout is DEIT_DISTILLED else BASE
    if config.get("use_swiglu_ffn"):  # its activation is SiLU, whatever config.json states
        return {"architecture": SWIGLU, "model_args": args, "eps": _eps(layout, config, where)}
    act = config.get("hidden_act", layout.act)
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise SourceError(
            f"{where}: hidden_act in config.json is {brief(act)}, which timm does not have. "
            f"Available: {', '.join(ACTIVATIONS)}."
        )
    if ACTIVATIONS[act]:
        args["act_layer"] = ACTIVATIONS[act]
    return {"architecture": base, "model_args": args, "eps": _eps(layout, config, where)}


def _guesses(layout: Layout, args: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Notes on the options of the architecture that neither the file nor its config.json states."""
    size = " x ".join(map(str, args["img_size"])) if isinstance(args["img_size"], list) else args["img_size"]
    heads, width = args["num_heads"], args["embed_dim"]
    found = {
        "num_attention_heads": f"{heads} attention heads are assumed, as in the published models of width {width}",
        "image_size": f"square images of {size} pixels are assumed, "
        + ("as in the published models" if layout is DINOV3 else "from the number of its position embeddings"),
    }
    if layout.types and layout is not DEIT_DISTILLED:
        found["model_type"] = "its class token is taken as features, not the mean of its patches"
    if layout is SIGLIP and args["global_pool"] == "map":
        found["model_type"] = (
            "its attention pooling is taken as features, not the mean of its patches (arch={family: vit, args: "
            "{global_pool: avg}}), and its activation is assumed to be GELU with tanh"
        )
    advice = "if that is wrong, pass models.sources.N.arch={family: vit, ...}"
    return [f"{text}; {advice}" for key, text in found.items() if not config.get(key)]


def _eps(layout: Layout, config: Mapping[str, Any], where: str) -> float:
    """The eps of a Hugging Face model's norms, from its config.json; default: that of transformers."""
    eps = config.get("layer_norm_eps", layout.eps)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise SourceError(
            f"{where}: layer_norm_eps in config.json should be a number from 0 to 1, it is {brief(eps)}."
        )
    return float(eps)


def _tower(
    found: Stripped,
    config: Mapping[str, Any],
    where: str,
    name: str,
    notes: tuple[str, ...],
    has_arch: bool,
    architecture: Mapping[str, Any] | None = None,
) -> Translation:
    """A tower under OpenAI's names. architecture: keys of timm's config.json."""
    if not has_arch and "architecture" not in config and not architecture:
        raise SourceError(
            f"{where} contains a CLIP vision tower, whose activation (GELU or quick-GELU) cannot be inferred. "
            "Pass models.sources.N.arch=vit_base_patch16_clip_quickgelu_224.openai for OpenAI's ViT-B/16, "
            "vit_base_patch16_clip_224.laion2b for LAION's, or another vit_*_clip_* name of timm."
        )
    pixels, guess = dict(CLIP_PIXELS), tuple[str, ...]()
    if config.get("preprocessor") and config.get("model_type"):
        pixels, guess, deviations = stated_pixels(
            TRANSFORMERS_CLIP, config, len(found.tensors["conv1.weight"][0]), where
        )
        notes += tuple(f"'{name}': preprocessor_config.json: {text}" for text in deviations)
    stated: dict[str, Any] = {**(architecture or {}), "pretrained_cfg": pixels}
    projection = found.tensors.get("proj")
    if projection is not None and projection.ndim != 2:
        raise SourceError(
            f"{where}: proj is {list(projection.shape)}, a CLIP tower's is [width, features]. Download it again."
        )
    if projection is not None:
        stated |= {"projection": True, "num_classes": projection.shape[1]}
    if found.prefix and not found.prefix.endswith(("visual.", "vision_model.")):
        notes = (*notes, *ignored_notes(found, name))
    own = found.prefix, found.beside, found.rest
    return Translation({}, found.heads, stated, notes, guess, found.tensors, *own)
