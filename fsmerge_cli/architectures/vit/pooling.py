"""Attention pooling with a latent query (timm's `AttentionPoolLatent`): one form for all files of one function.

Only W l + b of the latent l matters, the query itself. In memory it is the latent, without a projection (timm's
`q_proj=False`). In files, whose layout has a projection, that is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.family import Folding
from fsmerge_cli.architectures.vit.distilled import of_file, side_by_side, with_heads

LATENT, WEIGHT, BIAS = "attn_pool.latent", "attn_pool.q.weight", "attn_pool.q.bias"


def is_latent(model: Any) -> bool:
    """Whether a model of timm pools by attention with a latent query."""
    return type(getattr(model, "attn_pool", None)).__name__ == "AttentionPoolLatent"


def pooling(model: nn.Module) -> str | None:
    """Name of the module of attention pooling."""
    return "attn_pool" if is_latent(model) else None


def tokens(module: nn.Module) -> tuple[str, int]:
    """The last norm before the pooling, else the last block; and the number of class and register tokens."""
    model: Any = module
    last = f"blocks.{len(model.blocks) - 1}"
    return last if isinstance(model.norm, nn.Identity) else "norm", int(model.num_prefix_tokens)


def grid(module: nn.Module) -> tuple[int, int]:
    """Rows and columns of the patches of an image of the model's own size."""
    model: Any = module
    rows, columns = model.patch_embed.grid_size
    return rows, columns


def without_projection(module: nn.Module) -> nn.Module:
    """The module with the latent as its query, in place, and the features of two tokens side by side.

    It has the weights that `FOLDING.read` returns.
    """
    model: Any = module
    if is_latent(model):
        model.attn_pool.q = nn.Identity()
    return side_by_side(module)


def of_query(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file with the query as the latent [1, n, D]; those without a projection are unchanged."""
    found = dict(tensors)
    latent, weight, bias = found.get(LATENT), found.get(WEIGHT), found.get(BIAS)
    if latent is None or weight is None or latent.ndim != 3 or weight.shape[1:] != latent.shape[2:]:
        return found  # shapes that do not fit are reported later
    query = latent.double() @ weight.double().T
    if bias is not None:
        query = query + bias.double()
    del found[WEIGHT]
    found.pop(BIAS, None)
    found[LATENT] = query.to(latent.dtype)
    return found


def with_projection(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `of_query`, with the identity as the projection."""
    found = dict(tensors)
    latent = found.get(LATENT)
    if latent is None or WEIGHT in found:
        return found
    size = latent.shape[2]
    found[WEIGHT] = torch.eye(size, dtype=latent.dtype, device=latent.device)
    found[BIAS] = torch.zeros(size, dtype=latent.dtype, device=latent.device)
    return found


FOLDING = Folding(
    lambda arch, tensors: of_file(of_query(tensors)),
    lambda arch, weights, stats: with_heads(with_projection(weights)),
)
