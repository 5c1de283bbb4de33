"""timm's VisionTransformerDistilled (DeiT, arXiv 2012.12877): its features are those of two tokens, side by side.

timm averages the logits of a head on the class token and of one on the distillation token. That is one linear head
on both features: [W, W'] / 2 and (b + b') / 2. A network without classes averages the features themselves in timm,
so that files without classes have two heads which put them side by side: 2 [I; 0] and 2 [0; I].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

HEADS = ("head", "head_dist")
"""timm's heads on the class token and on the distillation token."""

TOKEN = "dist_token"


def has_two_tokens(model: Any) -> bool:
    """Whether the features of a model of timm are those of a class and a distillation token."""
    return hasattr(model, TOKEN)


def side_by_side(module: nn.Module) -> nn.Module:
    """The module with the features of both tokens as its features [n, 2 D], in place; others as they are."""
    if has_two_tokens(module):
        found: Any = module
        found.forward_head = _features
    return module


def _features(x: Tensor, pre_logits: bool = False) -> Tensor:
    return x[:, :2].flatten(1)


def one_head(tensors: Mapping[str, Tensor], names: Sequence[str], name: str) -> dict[str, Tensor]:
    """The tensors of a file with one head `name` on both features in place of those called `names`.

    Tensors that are no two linear layers of one shape are unchanged.
    """
    found = dict(tensors)
    weights, biases = ([tensors.get(f"{own}.{part}") for own in names] for part in ("weight", "bias"))
    first, second = weights
    if first is None or second is None or first.ndim != 2 or first.shape != second.shape:
        return found
    for own in names:
        found.pop(f"{own}.weight")
        found.pop(f"{own}.bias", None)
    found[f"{name}.weight"] = torch.cat([first, second], 1).float() / 2
    known = [bias.double() for bias in biases if bias is not None]
    if known:
        found[f"{name}.bias"] = torch.stack(known).sum(0).float() / 2
    return found


def of_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of timm with one head; without one where the two only put the features side by side.

    Where there are no values, the shape tells that.
    """
    found = one_head(tensors, HEADS, HEADS[0]) if TOKEN in tensors else dict(tensors)
    weight, bias = found.get("head.weight"), found.get("head.bias")
    if HEADS[1] + ".weight" not in tensors or weight is None or bias is None or HEADS[1] + ".weight" in found:
        return found
    if len(weight) == weight.shape[1] and (weight.is_meta or _passes_on(weight, bias)):
        del found["head.weight"], found["head.bias"]
    return found


def _passes_on(weight: Tensor, bias: Tensor) -> bool:
    return torch.equal(weight, torch.eye(len(weight))) and not bool(bias.any())


def two_heads(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The two heads of timm, whose mean has the logits of one head on both features, [classes, 2 D]."""
    found: dict[str, Tensor] = {}
    for own, part in zip(HEADS, (2 * weight).chunk(2, 1)):
        found |= {f"{own}.weight": part.contiguous(), f"{own}.bias": bias.clone()}
    return found


def with_heads(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network with two tokens, with heads that put their features side by side; others as is."""
    if TOKEN not in tensors:
        return dict(tensors)
    own = tensors[TOKEN]
    size = 2 * own.shape[-1]
    return {**tensors, **two_heads(torch.eye(size).to(own), torch.zeros(size).to(own))}
