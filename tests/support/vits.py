"""Tiny instances of every variant of timm's vision transformer that can be merged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.architectures.eva.family import is_eva
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source

TINY = {"img_size": 8, "patch_size": 4, "in_chans": 2, "embed_dim": 12, "depth": 2, "num_heads": 3}

ROTARY = {"embed_dim": 24}
"""Eight units per head: a rotation has two frequencies for each direction of the grid."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {}),
    "average pooling, fc_norm": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "average pooling, class token kept": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "no final norm": ("vit_tiny_patch16_224", {"final_norm": False}),
    "register tokens": ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    "no_embed_class": ("vit_tiny_patch16_224", {"no_embed_class": True, "reg_tokens": 1}),
    "distillation token (DeiT)": ("deit_tiny_distilled_patch16_224", {}),
    "no positions": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "pre-norm (CLIP)": ("vit_base_patch16_clip_224", {}),
    "CLIP quick-GELU with projection": ("vit_base_patch16_clip_quickgelu_224", {"projection": 5}),
    "no qkv bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "no proj bias": ("vit_tiny_patch16_224", {"proj_bias": False}),
    "LayerScale": ("vit_tiny_patch16_224", {"init_values": 0.1}),
    "q/k norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "attention and MLP norms": ("vit_tiny_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "RMSNorm": ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}),
    "embedding norm": ("vit_tiny_patch16_224", {"embed_norm_layer": "layernorm"}),
    "packed SwiGLU (DINOv2 giant)": ("vit_giant_patch14_dinov2", {}),
    "SwiGLU (AIMv2)": ("aimv2_large_patch14_224", {}),
    "dynamic image size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "maximum pooling": ("vit_tiny_patch16_224", {"global_pool": "max"}),
    "rotary, registers (DINOv3)": ("vit_small_patch16_dinov3", ROTARY),
    "rotary, biases of q and v (EVA-02)": ("eva02_tiny_patch14_224", ROTARY),
    "rotary, SwiGLU and its norm (EVA-02 large)": ("eva02_large_patch14_448", ROTARY),
    "rotary, sub-LN (EVA-02 CLIP)": ("eva02_base_patch16_clip_224", ROTARY),
    "rotary, pre-norm (Perception Encoder)": ("vit_pe_spatial_base_patch16_512", ROTARY),
    "biases of q and v (EVA)": ("eva_giant_patch14_224", ROTARY),
    "rotary, attention pooling (PE core)": ("vit_pe_core_base_patch16_224", {**ROTARY, "attn_pool_num_heads": 4}),
    "attention pooling (SigLIP)": ("vit_base_patch16_siglip_224", {}),
    "attention pooling, class token, norm, projection": (
        "vit_tiny_patch16_224",
        {"global_pool": "map", "fc_norm": True, "projection": 5, "depth": 1},
    ),
    "one deep block, other heads": ("vit_small_patch16_224", {"depth": 1, "num_heads": 2, "mlp_ratio": 1.5}),
}

QUICK = {"class token", "q/k norm"}
"""Variants in `make quick`."""


def mark_full(names: Iterable[str]) -> list[ParameterSet]:
    """The cases `names`; ViT variants other than QUICK are marked `full` and only run in `make test`."""
    return [pytest.param(n, marks=[pytest.mark.full] if n in set(VARIANTS) - QUICK else []) for n in names]


def vit_source(variant: str, seed: int, classes: int = 3, **options: Any) -> Source:
    """A vision transformer with random values in every tensor, including norms and tokens."""
    name, extra = VARIANTS[variant]
    args = {**TINY, **extra, **options}
    projection = args.pop("projection", None)
    if projection:
        args["num_classes"] = projection
    family = "eva" if is_eva(name) else "vit"
    more = {"projection": True} if projection else {}
    arch = SPECS[family].parse(family, {"name": name, "args": args, **more}, {}, "test")
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        weights = {
            n: 0.3 * torch.randn(t.shape, generator=random)
            + (1.0 if "norm" in n and n.endswith("weight") else 0.0)
            for n, t in SPECS[family].build(arch).state_dict().items()
        }
    labels = tuple(f"{seed}-{c}" for c in range(classes))
    head = Head(
        torch.randn(classes, arch.features, generator=random), torch.randn(classes, generator=random), labels
    )
    return Source(f"s{seed}", SPECS[family], arch, weights, head, origin="random", sha256="0" * 64)
