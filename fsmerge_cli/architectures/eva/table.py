"""The specification of timm's Eva: EVA-02, DINOv3, Perception Encoder, other rotary vision transformers.

The spaces are those of the plain vision transformer (see `vit.table`). Queries and keys that are turned by their
position keep their coordinates inside a head: a rotation acts on fixed pairs of them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import HeadSpace, Spec, norm
from fsmerge_cli.architectures.vit.table import assembled

BLOCK: dict[str, Spec] = {
    "blocks.{i}.gamma_1": norm("res@ls1_{i}", fill=1.0),
    "blocks.{i}.gamma_2": norm("res@ls2_{i}", fill=1.0),
    "blocks.{i}.attn.q_proj.weight": ("qk{i}@q{i}", "res@attn{i}"),
    "blocks.{i}.attn.q_proj.bias": ("qk{i}@q{i}",),
    "blocks.{i}.attn.k_proj.weight": ("qk{i}@k{i}", "res@attn{i}"),
    "blocks.{i}.attn.k_proj.bias": ("qk{i}@k{i}",),
    "blocks.{i}.attn.v_proj.weight": ("v{i}@v{i}", "res@attn{i}"),
    "blocks.{i}.attn.v_proj.bias": ("v{i}@v{i}",),
}


def table(module: nn.Module) -> Table:
    """The specification of one instance."""
    model: Any = module
    heads = {
        "v{i}": HeadSpace(order="v{i}"),
        "qk{i}": HeadSpace(order="v{i}", consumed=True, rotary=model.rope is not None),
    }
    return assembled(module, BLOCK, heads, projected=False)
