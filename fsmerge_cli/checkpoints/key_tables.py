"""Tables of the tensor names that other libraries use for a plain vision transformer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fsmerge_cli.checkpoints.other_text_models import refuse_other
from fsmerge_cli.checkpoints.prefixes import HEADS
from fsmerge_cli.checkpoints.siglip import NAFLEX
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import shown

ACTIVATIONS = {
    "gelu": None,
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Hugging Face's names of activations -> timm's (None: timm's own default)."""

WB = r"(weight|bias)"


@dataclass(frozen=True)
class Layout:
    """The tensor names of one library.

    title: its name in messages. anchor: the tensor by which it is recognised, without any prefix.
    keys: pattern of a name -> timm's name. types: `model_type` of Hugging Face's config.json (none: it has no such
    file). eps: of its norms, where config.json does not state it. processor: start of the class of its image
    processors, where preprocessor_config.json does not state it. timm_eps: of the norms of timm's model. act:
    activation, where config.json does not state it.
    """

    title: str
    anchor: str
    keys: Mapping[str, str]
    types: tuple[str, ...] = ()
    eps: float = 1e-12
    processor: str = "ViT"
    timm_eps: float = 1e-6
    act: str = "gelu"


TORCHVISION = Layout(
    title="torchvision's VisionTransformer",
    anchor="class_token",
    keys={
        r"class_token": "cls_token",
        r"encoder\.pos_embedding": "pos_embed",
        rf"conv_proj\.{WB}": r"patch_embed.proj.\1",
        rf"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.{WB}": r"blocks.\1.norm\2.\3",
        rf"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_{WB}": r"blocks.\1.attn.qkv.\2",
        rf"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.{WB}": r"blocks.\1.attn.proj.\2",
        rf"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.{WB}": r"blocks.\1.mlp.fc1.\2",
        rf"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.{WB}": r"blocks.\1.mlp.fc2.\2",
        rf"encoder\.ln\.{WB}": r"norm.\1",
        r"heads\.(?:head\.)?(.*)": r"head.\1",
    },
)

_LAYER = r"(?:encoder\.layer|layers)\.(\d+)"
TRANSFORMERS = Layout(
    title="Hugging Face's ViTModel",
    anchor="embeddings.patch_embeddings.projection.weight",
    keys={
        r"embeddings\.cls_token": "cls_token",
        r"embeddings\.position_embeddings": "pos_embed",
        rf"embeddings\.patch_embeddings\.projection\.{WB}": r"patch_embed.proj.\1",
        rf"{_LAYER}\.layernorm_before\.{WB}": r"blocks.\1.norm1.\2",
        rf"{_LAYER}\.layernorm_after\.{WB}": r"blocks.\1.norm2.\2",
        rf"{_LAYER}\.attention\.(?:attention\.query|q_proj)\.{WB}": r"blocks.\1.attn.qkv.\2#q",
        rf"{_LAYER}\.attention\.(?:attention\.key|k_proj)\.{WB}": r"blocks.\1.attn.qkv.\2#k",
        rf"{_LAYER}\.attention\.(?:attention\.value|v_proj)\.{WB}": r"blocks.\1.attn.qkv.\2#v",
        rf"{_LAYER}\.attention\.(?:output\.dense|o_proj)\.{WB}": r"blocks.\1.attn.proj.\2",
        rf"{_LAYER}\.(?:intermediate\.dense|mlp\.fc1)\.{WB}": r"blocks.\1.mlp.fc1.\2",
        rf"{_LAYER}\.(?:output\.dense|mlp\.fc2)\.{WB}": r"blocks.\1.mlp.fc2.\2",
        rf"layernorm\.{WB}": r"norm.\1",
    },
    types=("vit", "vit_msn"),
)
DEIT = Layout(
    title="Hugging Face's DeiTModel",
    anchor="embeddings.distillation_token",
    keys={**TRANSFORMERS.keys, r"embeddings\.distillation_token": "reg_token"},
    types=("deit",),
    processor="DeiT",
)
DEIT_DISTILLED = replace(
    DEIT,
    title="Hugging Face's DeiT with a head on each of its two tokens",
    keys={**TRANSFORMERS.keys, r"embeddings\.distillation_token": "dist_token"},
)
DINOV2 = Layout(
    title="Hugging Face's Dinov2Model",
    anchor="encoder.layer.0.layer_scale1.lambda1",
    keys={
        **TRANSFORMERS.keys,
        r"embeddings\.mask_token": "mask_token",
        r"embeddings\.register_tokens": "register_tokens",
        rf"{_LAYER}\.norm([12])\.{WB}": r"blocks.\1.norm\2.\3",
        rf"{_LAYER}\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
        rf"{_LAYER}\.mlp\.weights_in\.{WB}": r"blocks.\1.mlp.fc1.\2",
        rf"{_LAYER}\.mlp\.gate_proj\.{WB}": r"blocks.\1.mlp.fc1.\2#gate",
        rf"{_LAYER}\.mlp\.up_proj\.{WB}": r"blocks.\1.mlp.fc1.\2#up",
        rf"{_LAYER}\.mlp\.(?:weights_out|down_proj)\.{WB}": r"blocks.\1.mlp.fc2.\2",
    },
    types=("dinov2", "dinov2_with_registers"),
    eps=1e-6,
    processor="Bit",
)
_LAYER3 = r"(?:model\.)?layer\.(\d+)"
DINOV3 = Layout(
    title="Hugging Face's DINOv3ViTModel",
    anchor="embeddings.patch_embeddings.weight",
    keys={  # to the names that `dinov3.of_eva` reads
        r"embeddings\.(cls_token|mask_token)": r"\1",
        r"embeddings\.register_tokens": "reg_token",
        rf"embeddings\.patch_embeddings\.{WB}": r"patch_embed.proj.\1",
        rf"{_LAYER3}\.norm([12])\.{WB}": r"blocks.\1.norm\2.\3",
        rf"{_LAYER3}\.attention\.([qkv])_proj\.{WB}": r"blocks.\1.attn.\2_proj.\3",
        rf"{_LAYER3}\.attention\.o_proj\.{WB}": r"blocks.\1.attn.proj.\2",
        rf"{_LAYER3}\.layer_scale([12])\.lambda1": r"blocks.\1.gamma_\2",
        rf"{_LAYER3}\.mlp\.(gate|up)_proj\.{WB}": r"blocks.\1.mlp.\2.\3",
        rf"{_LAYER3}\.mlp\.down_proj\.{WB}": r"blocks.\1.mlp.fc2.\2",
    },
    types=("dinov3_vit",),
    eps=1e-5,
    processor="DINOv3ViT",
    timm_eps=1e-5,
)
_TOWER, _BLOCK = r"encoder\.layers\.(\d+)", r"transformer.resblocks.\1"
TRANSFORMERS_CLIP = Layout(
    title="Hugging Face's CLIPVisionModel",
    anchor="embeddings.class_embedding",
    keys={  # to the names of OpenAI
        r"embeddings\.class_embedding": "class_embedding",
        r"embeddings\.patch_embedding\.weight": "conv1.weight",
        r"embeddings\.position_embedding\.weight": "positional_embedding",
        rf"pre_layrnorm\.{WB}": r"ln_pre.\1",
        rf"post_layernorm\.{WB}": r"ln_post.\1",
        rf"{_TOWER}\.layer_norm([12])\.{WB}": rf"{_BLOCK}.ln_\2.\3",
        rf"{_TOWER}\.self_attn\.(q|k|v)_proj\.{WB}": rf"{_BLOCK}.attn.in_proj_\3#\2",
        rf"{_TOWER}\.self_attn\.out_proj\.{WB}": rf"{_BLOCK}.attn.out_proj.\2",
        rf"{_TOWER}\.mlp\.fc1\.{WB}": rf"{_BLOCK}.mlp.c_fc.\2",
        rf"{_TOWER}\.mlp\.fc2\.{WB}": rf"{_BLOCK}.mlp.c_proj.\2",
    },
    types=("clip", "clip_vision_model"),
    eps=1e-5,
    processor="CLIP",
)
SIGLIP = Layout(
    title="Hugging Face's SiglipVisionModel",
    anchor="embeddings.patch_embedding.bias",
    keys={  # to the names that `siglip.of_timm` reads
        rf"embeddings\.patch_embedding\.{WB}": r"patch_embed.proj.\1",
        r"embeddings\.position_embedding\.weight": "pos_embed",
        rf"post_layernorm\.{WB}": r"norm.\1",
        rf"{_TOWER}\.layer_norm([12])\.{WB}": r"blocks.\1.norm\2.\3",
        rf"{_TOWER}\.self_attn\.(q|k|v)_proj\.{WB}": r"blocks.\1.attn.qkv.\3#\2",
        rf"{_TOWER}\.self_attn\.out_proj\.{WB}": r"blocks.\1.attn.proj.\2",
        rf"{_TOWER}\.mlp\.fc([12])\.{WB}": r"blocks.\1.mlp.fc\2.\3",
        r"head\.probe": "attn_pool.latent",
        rf"head\.attention\.in_proj_{WB}": r"attn_pool.qkv.\1",
        rf"head\.attention\.out_proj\.{WB}": r"attn_pool.proj.\1",
        rf"head\.layernorm\.{WB}": r"attn_pool.norm.\1",
        rf"head\.mlp\.fc([12])\.{WB}": r"attn_pool.mlp.fc\1.\2",
    },
    types=("siglip", "siglip_vision_model"),
    eps=1e-6,
    processor="Siglip",
    act="gelu_pytorch_tanh",
)
CLIP = Layout(title="a CLIP vision tower", anchor="class_embedding", keys={})  # converted by timm

TRUNK = Layout(
    title="open_clip's vision tower of timm",
    anchor="trunk.patch_embed.proj.weight",
    keys={r"trunk\.(.*)": r"\1", rf"head\.proj\.{WB}": r"head.\1"},
)

LAYOUTS = (TORCHVISION, DEIT, DINOV2, DINOV3, TRANSFORMERS, TRANSFORMERS_CLIP, SIGLIP, CLIP, TRUNK)
"""In the order in which they are tried: DeiT and DINOv2 have the anchor of ViTModel as well."""

SECOND_HEAD = r"(^|\.)distillation_classifier\."
"""Tensors of the head on DeiT's distillation token."""

REFUSED = {
    "a convolutional stem of torchvision": r"(^|\.)conv_proj\.conv_last\.",
    "torchvision's VisionTransformer with a representation layer": r"(^|\.)heads\.pre_logits\.",
    "CLIP's ResNet": r"(^|\.)visual\.layer1\.0\.conv1\.",
    "Hugging Face's BEiT or Data2Vec": r"(^|\.)(lambda_1|relative_position_bias\.relative_position_bias_table)$",
    "Hugging Face's Swin": r"(^|\.)encoder\.layers\.\d+\.blocks\.\d+\.layernorm_before\.",
}
"""Formats that are recognised but not supported: title -> pattern of a tensor that only this format has."""


ADAPTER = (
    "an adapter of PEFT (LoRA or similar), not the weights of a whole model",
    "Pass its folder and the model that it was trained on, models.sources.N.base=... (needs "
    "pip install peft), or merge it once: peft's PeftModel.from_pretrained(model, "
    "FOLDER).merge_and_unload() returns the model, whose save_pretrained or state_dict() gives the weights.",
)
"""What a PEFT adapter is, and the remedy."""

UNMERGED = (
    "a model with an adapter of PEFT that is not merged into it",
    "Merge it once: peft's merge_and_unload() returns the model, whose save_pretrained or state_dict() gives the "
    "weights.",
)

RELATIVE = (
    "a vision transformer of timm with a table of relative positions (BEiT)",
    "The table adds to the logits of each head, so that heads cannot be mixed, and it cannot be merged. Use a "
    "model with position embeddings or rotary positions (vit_*, eva02_*).",
)

NOT_READ = (
    (r"\.(base_layer|modules_to_save)\.", *UNMERGED),
    (r"(^|\.)(lora|hada|lokr|ia3|oft|boft|vera|randlora)_\w+", *ADAPTER),
    (r"(?<!layers\.\d)(^|\.)blocks\.\d+\.attn\.(relative_position_bias_table$|rel_pos\.)", *RELATIVE),
    (r"(^|\.)rel_pos_bias\.", *RELATIVE),
    (
        r"(^|\.)_?flat_param(_\d+)?$",
        "flat parameters of FSDP, whose shapes the file does not have",
        "Save the whole state dict: FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT).",
    ),
)
"""Tensors of models that are not read: pattern of a name, what they are, and the remedy."""


def recognise(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> Layout | None:
    """The layout of these names; None for timm's and fsmerge's. Raises SourceError for a format in REFUSED."""
    kind, known = config.get("model_type"), [own for layout in LAYOUTS for own in layout.types]
    if isinstance(kind, str) and kind not in known and "architecture" not in config:
        refuse_other(kind, where)
        if kind in ("siglip2", "siglip2_vision_model"):
            raise SourceError(f"{where} contains {NAFLEX}.")
        raise _refuse(where, f"a model of Hugging Face transformers of the type '{kind}'")
    for pattern, title, remedy in NOT_READ:
        if found := [name for name in tensors if re.search(pattern, name)]:
            raise SourceError(f"{where} contains {title} ({shown(found[0])}). {remedy}")
    for title, pattern in REFUSED.items():
        if any(re.search(pattern, name) for name in tensors):
            raise _refuse(where, title)
    for layout in LAYOUTS:
        ends = f".{layout.anchor}"
        found = [name.removesuffix(layout.anchor) for name in tensors if f".{name}".endswith(ends)]
        if layout is TRUNK:
            found = [prefix for prefix in found if not _has_classifier(tensors, prefix)]
        if found and layout is DEIT and any(re.search(SECOND_HEAD, name) for name in tensors):
            return DEIT_DISTILLED
        if found:
            return layout
    return None


def _has_classifier(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether there is a classifier next to a trunk: not in open_clip, but in a user's own wrapper."""
    projection = (f"{prefix}head.proj.", f"{prefix}head.mlp.")  # open_clip's own
    starts = tuple(f"{prefix}{head}." for head in HEADS)
    return any(name.startswith(starts) and not name.startswith(projection) for name in tensors)


def _refuse(where: str, title: str) -> SourceError:
    return SourceError(
        f"{where} contains {title}, which is not supported. Supported formats of other libraries are "
        "torchvision's VisionTransformer, Hugging Face's ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP, and the CLIP "
        "vision towers of OpenAI and open_clip. Load the model into timm, and save its state_dict."
    )
