"""The specification of a ModernBERT: which space every axis of every tensor belongs to.

The spaces are those of `architectures.bert`. Queries and keys are turned by their position, so that they keep
their places inside a head.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import FIXED, HeadSpace, Spec, norm, stack


def table(module: nn.Module) -> Table:
    """The specification of one instance."""
    encoder: Any = module
    qkv, gate = stack("qk{i}@q{i}", "qk{i}@k{i}", "v{i}@v{i}"), stack("h{i}@first{i}", "h{i}@second{i}")
    return Table(
        tensors={
            "embeddings.tok_embeddings.weight": (FIXED, "res@embed"),
            **_norm("embeddings.norm", "res@embed_norm"),
            **_norm("layers.{i}.attn_norm", "res@norm1_{i}"),
            **_linear("layers.{i}.attn.Wqkv", qkv, "res@attn{i}"),
            **_linear("layers.{i}.attn.Wo", "res@proj{i}", "v{i}@proj{i}"),
            **_norm("layers.{i}.mlp_norm", "res@norm2_{i}"),
            **_linear("layers.{i}.mlp.Wi", gate, "res@mlp{i}"),
            **_linear("layers.{i}.mlp.Wo", "res@fc2_{i}", "h{i}@fc2_{i}"),
            **_norm("final_norm", "res@norm"),
            **_linear("head.dense", "pool@pooler", "res@pooler"),
            **_norm("head.norm", "pool@norm"),
        },
        features="pool@features" if encoder._arch.pooler else "res@features",
        heads={"v{i}": HeadSpace(order="v{i}"), "qk{i}": HeadSpace(order="v{i}", consumed=True, rotary=True)},
    )


def _linear(path: str, write: Any, read: str) -> dict[str, Spec]:
    return {f"{path}.weight": (write, read), f"{path}.bias": (write,)}


def _norm(path: str, port: str) -> dict[str, Spec]:
    return {f"{path}.weight": norm(port, fill=1.0), f"{path}.bias": norm(port, fill=0.0)}
