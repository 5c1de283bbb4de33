"""The specification of timm's VisionTransformer: which space every axis of every tensor belongs to.

`res` is the residual stream (one space, many ports), `qk{i}` the queries and keys of block i, `v{i}` its values,
`h{i}` its hidden layer, `out` the projected features. Attention pooling is one more block behind the stream, which
writes a stream of its own: `pool`, with `qk_pool`, `v_pool` and `h_pool`; its latent is the query. The features
of two tokens (DeiT) are two parts of `res`. Entries of tensors that a variant lacks are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import FIXED, HeadSpace, Spec, head_norm, norm, stack
from fsmerge_cli.architectures.vit.distilled import has_two_tokens
from fsmerge_cli.architectures.vit.pooling import is_latent

RESIDUAL: dict[str, Spec] = {
    "cls_token": (FIXED, FIXED, "res@embed"),
    "dist_token": (FIXED, FIXED, "res@embed"),
    "reg_token": (FIXED, FIXED, "res@embed"),
    "pos_embed": (FIXED, FIXED, "res@embed"),
    "patch_embed.proj.weight": ("res@embed", FIXED, FIXED, FIXED),
    "patch_embed.proj.bias": ("res@embed",),
    "patch_embed.norm.weight": norm("res@embed_norm", fill=1.0),
    "patch_embed.norm.bias": norm("res@embed_norm", fill=0.0),
    "norm_pre.weight": norm("res@norm_pre", fill=1.0),
    "norm_pre.bias": norm("res@norm_pre", fill=0.0),
    "norm.weight": norm("res@norm", fill=1.0),
    "norm.bias": norm("res@norm", fill=0.0),
    "fc_norm.weight": norm("res@fc_norm", fill=1.0),
    "fc_norm.bias": norm("res@fc_norm", fill=0.0),
    "head.weight": ("out@head", "res@head"),
    "head.bias": ("out@head",),
}
ATTENTION: dict[str, Spec] = {
    "blocks.{i}.norm1.weight": norm("res@norm1_{i}", fill=1.0),
    "blocks.{i}.norm1.bias": norm("res@norm1_{i}", fill=0.0),
    "blocks.{i}.attn.qkv.weight": (stack("qk{i}@q{i}", "qk{i}@k{i}", "v{i}@v{i}"), "res@attn{i}"),
    "blocks.{i}.attn.qkv.bias": (stack("qk{i}@q{i}", "qk{i}@k{i}", "v{i}@v{i}"),),
    "blocks.{i}.attn.q_norm.weight": head_norm("qk{i}@q_norm{i}", fill=1.0),
    "blocks.{i}.attn.q_norm.bias": head_norm("qk{i}@q_norm{i}", fill=0.0),
    "blocks.{i}.attn.k_norm.weight": head_norm("qk{i}@k_norm{i}", fill=1.0),
    "blocks.{i}.attn.k_norm.bias": head_norm("qk{i}@k_norm{i}", fill=0.0),
    "blocks.{i}.attn.norm.weight": norm("v{i}@attn_norm{i}", fill=1.0),
    "blocks.{i}.attn.norm.bias": norm("v{i}@attn_norm{i}", fill=0.0),
    "blocks.{i}.attn.proj.weight": ("res@proj{i}", "v{i}@proj{i}"),
    "blocks.{i}.attn.proj.bias": ("res@proj{i}",),
    "blocks.{i}.ls1.gamma": norm("res@ls1_{i}", fill=1.0),
}
MLP_BLOCK: dict[str, Spec] = {
    "blocks.{i}.norm2.weight": norm("res@norm2_{i}", fill=1.0),
    "blocks.{i}.norm2.bias": norm("res@norm2_{i}", fill=0.0),
    "blocks.{i}.mlp.fc1.weight": ("h{i}@fc1_{i}", "res@mlp{i}"),
    "blocks.{i}.mlp.fc1.bias": ("h{i}@fc1_{i}",),
    "blocks.{i}.mlp.fc1_g.weight": ("h{i}@gate{i}", "res@mlp{i}"),
    "blocks.{i}.mlp.fc1_g.bias": ("h{i}@gate{i}",),
    "blocks.{i}.mlp.fc1_x.weight": ("h{i}@value{i}", "res@mlp{i}"),
    "blocks.{i}.mlp.fc1_x.bias": ("h{i}@value{i}",),
    "blocks.{i}.mlp.norm.weight": norm("h{i}@mlp_norm{i}", fill=1.0),
    "blocks.{i}.mlp.norm.bias": norm("h{i}@mlp_norm{i}", fill=0.0),
    "blocks.{i}.mlp.fc2.weight": ("res@fc2_{i}", "h{i}@fc2_{i}"),
    "blocks.{i}.mlp.fc2.bias": ("res@fc2_{i}",),
    "blocks.{i}.ls2.gamma": norm("res@ls2_{i}", fill=1.0),
}
PACKED: dict[str, Spec] = {
    "blocks.{i}.mlp.fc1.weight": (stack("h{i}@first{i}", "h{i}@second{i}"), "res@mlp{i}"),
    "blocks.{i}.mlp.fc1.bias": (stack("h{i}@first{i}", "h{i}@second{i}"),),
}
"""A gate and its value in one weight, as halves in timm's order; both belong to the hidden space."""
POOLING: dict[str, Spec] = {
    "attn_pool.latent": (FIXED, FIXED, "qk_pool@latent"),
    "attn_pool.kv.weight": (stack("qk_pool@k", "v_pool@v"), "res@pool"),
    "attn_pool.kv.bias": (stack("qk_pool@k", "v_pool@v"),),
    "attn_pool.proj.weight": ("pool@proj", "v_pool@proj"),
    "attn_pool.proj.bias": ("pool@proj",),
    "attn_pool.norm.weight": norm("pool@norm", fill=1.0),
    "attn_pool.norm.bias": norm("pool@norm", fill=0.0),
    "attn_pool.mlp.fc1.weight": ("h_pool@fc1", "pool@mlp"),
    "attn_pool.mlp.fc1.bias": ("h_pool@fc1",),
    "attn_pool.mlp.fc2.weight": ("pool@fc2", "h_pool@fc2"),
    "attn_pool.mlp.fc2.bias": ("pool@fc2",),
    "fc_norm.weight": norm("pool@fc_norm", fill=1.0),
    "fc_norm.bias": norm("pool@fc_norm", fill=0.0),
    "head.weight": ("out@head", "pool@head"),
}
POOLING_HEADS = {"v_pool": HeadSpace(order="v_pool"), "qk_pool": HeadSpace(order="v_pool", consumed=True)}
HEADS = {"v{i}": HeadSpace(order="v{i}"), "qk{i}": HeadSpace(order="v{i}", consumed=True)}


def assembled(
    module: nn.Module, blocks: Mapping[str, Spec], heads: Mapping[str, HeadSpace], projected: bool
) -> Table:
    """The specification of one instance. blocks: entries of its blocks beside those of every MLP and attention.

    heads: the spaces of its blocks that consist of heads. projected: whether a projection is behind the pooling.
    """
    model: Any = module
    mlp = model.blocks[0].mlp
    packed = hasattr(mlp, "fc1") and mlp.fc1.out_features == 2 * mlp.fc2.in_features
    pooled = is_latent(model)
    own = stack("res@features", "res@features_dist") if has_two_tokens(model) else "res@features"
    return Table(
        tensors={
            **RESIDUAL,
            **ATTENTION,
            **MLP_BLOCK,
            **blocks,
            **(PACKED if packed else {}),
            **(POOLING if pooled else {}),
        },
        features="out@features" if projected else "pool@features" if pooled else own,
        heads={**heads, **(POOLING_HEADS if pooled else {})},
    )


def table(module: nn.Module) -> Table:
    """The specification of one instance."""
    model: Any = module
    return assembled(module, {}, HEADS, projected=not isinstance(model.head, nn.Identity))
