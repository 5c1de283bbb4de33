"""The specification of a text encoder: which space every axis of every tensor belongs to.

`res` is the stream (one space, many ports), `qk{i}` the queries and keys of block i, `v{i}` its values, `h{i}` its
hidden layer, `pool` the pooled features. All tables that are summed write into one port. `emb` is the stream
before its projection, where tables are narrower than blocks (ELECTRA).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fsmerge_cli.architectures.bert.names import NAMES, Names
from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import FIXED, HeadSpace, Spec, norm


def table(module: nn.Module) -> Table:
    """The specification of one instance."""
    encoder: Any = module
    arch, names = encoder._arch, NAMES[encoder._arch.model_type]
    tables = "res" if arch.embedded == arch.hidden_size else "emb"
    tensors: dict[str, Spec] = {
        f"{path}.weight": (FIXED, f"{tables}@embed")
        for path in (names.word, names.position, names.types)
        if path is not None
    }
    tensors |= _norm(names.norm, f"{tables}@embed_norm")
    if names.project is not None:
        tensors |= _linear(names.project, "res@project", f"{tables}@project")
    tensors |= _block(names)
    tensors |= _linear(names.pooler, "pool@pooler", "res@pooler")
    return Table(
        tensors=tensors,
        features="pool@features" if arch.pooler else "res@features",
        heads={"v{i}": HeadSpace(order="v{i}"), "qk{i}": HeadSpace(order="v{i}", consumed=True)},
    )


def _block(names: Names) -> dict[str, Spec]:
    def path(part: str) -> str:
        return f"{names.block}.{part}"

    return {
        **_linear(path(names.query), "qk{i}@q{i}", "res@attn{i}"),
        **_linear(path(names.key), "qk{i}@k{i}", "res@attn{i}"),
        **_linear(path(names.value), "v{i}@v{i}", "res@attn{i}"),
        **_linear(path(names.attended), "res@proj{i}", "v{i}@proj{i}"),
        **_norm(path(names.attended_norm), "res@norm1_{i}"),
        **_linear(path(names.hidden), "h{i}@fc1_{i}", "res@mlp{i}"),
        **_linear(path(names.output), "res@fc2_{i}", "h{i}@fc2_{i}"),
        **_norm(path(names.output_norm), "res@norm2_{i}"),
    }


def _linear(path: str, write: str, read: str) -> dict[str, Spec]:
    return {f"{path}.weight": (write, read), f"{path}.bias": (write,)}


def _norm(path: str, port: str) -> dict[str, Spec]:
    return {f"{path}.weight": norm(port, fill=1.0), f"{path}.bias": norm(port, fill=0.0)}
