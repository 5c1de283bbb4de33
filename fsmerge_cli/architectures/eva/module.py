"""Inspection of timm's Eva instances, and rotary tables that do not depend on the device of the weights."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.vit.pooling import is_latent

ROTARY = ("RotaryEmbeddingCat", "RotaryEmbeddingDinoV3")
"""Rotary positions that are a fixed table; the others are trained, or need more than the grid."""


def properties(model: Any) -> dict[str, Any]:
    """Properties that all sources have to share; widths and numbers of heads may differ."""
    block = model.blocks[0]
    parts = {
        "attention output norm": getattr(block.attn, "norm", None),
        "MLP norm": getattr(block.mlp, "norm", None),
        "q/k norm": getattr(block.attn, "q_norm", None),
        "pre-norm": model.norm_pre,
        "final norm": model.norm,
        "norm after pooling": model.fc_norm,
    }
    names = {name for name, _ in model.named_parameters()}
    height, width = model.patch_embed.img_size
    biases = [n for n in ("qkv", "q_proj", "k_proj", "v_proj", "proj") if f"blocks.0.attn.{n}.bias" in names]
    return {
        "input_size": (model.patch_embed.proj.in_channels, height, width),
        "patch size": tuple(model.patch_embed.patch_size),
        "depth": len(model.blocks),
        "class token": model.cls_token is not None,
        "register tokens": 0 if model.reg_token is None else model.reg_token.shape[1],
        "positions": None if model.pos_embed is None else model.pos_embed.shape[1],
        "pooling": model.global_pool,
        "norm": f"{type(block.norm1).__name__}(eps={block.norm1.eps})",
        "MLP": type(block.mlp).__name__,
        "activation": repr(block.mlp.act),
        "LayerScale": block.gamma_1 is not None,
        **{name: part is not None and not isinstance(part, nn.Identity) for name, part in parts.items()},
        "biases": ", ".join([*biases, *(["patch"] if "patch_embed.proj.bias" in names else [])]),
    }


def arguments(model: Any) -> dict[str, Any]:
    """Keyword arguments for timm that give this model's sizes and flags; the rest follows from its timm name."""
    block, embed = model.blocks[0], model.patch_embed
    first = getattr(block.mlp, "fc1", None) or block.mlp.fc1_g
    hidden = block.mlp.fc2.in_features
    pooling = {}
    if is_latent(model):
        ratio = model.attn_pool.mlp.fc1.out_features / model.embed_dim
        pooling = {"attn_pool_num_heads": model.attn_pool.num_heads, "attn_pool_mlp_ratio": ratio}
    return {
        **pooling,
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": hidden / model.embed_dim,
        "swiglu_mlp": type(block.mlp).__name__ != "Mlp" or first.out_features != hidden,
        "init_values": None if block.gamma_1 is None else 1.0,
        "class_token": model.cls_token is not None,
        "num_reg_tokens": 0 if model.reg_token is None else model.reg_token.shape[1],
        "use_abs_pos_emb": model.pos_embed is not None,
        "dynamic_img_size": bool(model.dynamic_img_size),
    }


def head_size(model: Any) -> int:
    """Units of one attention head."""
    return int(model.embed_dim // model.blocks[0].attn.num_heads)


def reasons(model: Any) -> list[str]:
    """Reasons why a variant cannot be merged."""
    from timm.layers.attention import AttentionRope
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.eva import EvaAttention, EvaBlock

    block = model.blocks[0]
    if type(block) is not EvaBlock:
        return [f"{type(block).__name__}: only blocks of attention, then MLP, each after its norm, can be merged"]
    found = []
    if model.global_pool == "":
        found.append("no pooling (global_pool=''): its features are one vector per token, not per image")
    if type(block.attn) not in (AttentionRope, EvaAttention):
        found.append(f"{type(block.attn).__name__}: only timm's EvaAttention and AttentionRope can be merged")
    elif getattr(block.attn, "gate", None) is not None:
        found.append("gated attention: its gate mixes the values' space with the residual stream")
    elif any(getattr(b.attn, "num_kv_heads", None) not in (None, b.attn.num_heads) for b in model.blocks):
        found.append("grouped-query attention: fewer heads of keys and values than of queries")
    if not any(hasattr(block.mlp, name) for name in ("fc1", "fc1_g")):
        found.append(f"{type(block.mlp).__name__}: only Mlp, GluMlp and SwiGLU can be merged")
    if model.rope is not None and type(model.rope).__name__ not in (*ROTARY, FixedRope.__name__):
        found.append(f"{type(model.rope).__name__}: only rotary positions that are a fixed table can be merged")
    if type(model.patch_embed) is not PatchEmbed:
        found.append(f"{type(model.patch_embed).__name__}: only a plain patch projection can be merged")
    return found


class FixedRope(nn.Module):
    """A table of rotary positions [N, 2 d] that is no buffer, so that it stays when weights are on `meta`."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self._table = [table]  # in a list, where no conversion of the module finds it
        self._moved: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.feat_shape = None  # timm's model asks a rotary module that has one for its table without a shape

    def get_embed(self, shape: Any = None) -> Tensor:
        """The table, on the CPU."""
        return self._table[0]

    def like(self, x: Tensor) -> Tensor:
        """The table on the device of `x`, in fp64 if `x` is, else in fp32; each is made once."""
        key = x.device, torch.float64 if x.dtype == torch.float64 else torch.float32
        if key not in self._moved:
            self._moved[key] = self._table[0].to(*key)
        return self._moved[key]


@lru_cache(maxsize=1)
def _fixed_block() -> type[nn.Module]:
    """Timm's EvaBlock that turns by its own :class:`FixedRope`; timm takes seconds to import."""
    from timm.models.eva import EvaBlock

    class FixedBlock(EvaBlock):
        def forward(self, x: Tensor, *given: Any, **options: Any) -> Tensor:
            fixed: Any = self.fixed_rope
            found: Tensor = super().forward(x, **{**options, "rope": fixed.like(x)})
            return found

    return FixedBlock


def with_fixed_rope(module: Any, table: Tensor) -> nn.Module:
    """The instance of Eva with `table` as its rotary positions, in place.

    Every block has them, so that it can be run by itself.
    """
    module.rope = FixedRope(table)
    for block in module.blocks:
        block.fixed_rope = module.rope
        block.__class__ = _fixed_block()
    found: nn.Module = module
    return found


def rope_table(name: str, args: dict[str, Any], heads: int, width: int) -> Tensor:
    """The rotary positions [N, 2 d] of a model, from a real one with the same grid and one head."""
    small = {**args, "embed_dim": width // heads, "num_heads": 1, "depth": 1}
    return _table(name, json.dumps(small, sort_keys=True))


@lru_cache(maxsize=32)
def _table(name: str, args: str) -> Tensor:
    from timm.models import create_model

    # Skeletons are built on `meta`; the random weights of this small model change no generator.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model: Any = create_model(name, pretrained=False, num_classes=0, **json.loads(args))
        found: Tensor = model.eval().rope.get_embed(shape=model.patch_embed.grid_size).detach()
    return found
