"""The family of ModernBERTs, as transformers' own classes describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fsmerge_cli.architectures.bert.family import POOLING, SNIPPET, features_read, require_buildable, sample
from fsmerge_cli.architectures.bert.names import NAMES
from fsmerge_cli.architectures.family import Family
from fsmerge_cli.architectures.modernbert.arch import ModernArch
from fsmerge_cli.architectures.modernbert.module import Encoder
from fsmerge_cli.architectures.modernbert.table import table
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.common.options import build as build_options

BIASES = ("norm_bias", "attention_bias", "mlp_bias")
"""Options that transformers' config.json has under the same names."""


def parse(name: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> ModernArch:
    """Options from `{family: modernbert, ...}`. Raises SourceError where they contradict each other."""
    arch = build_options(ModernArch, options, where)
    if arch.hidden_size % (2 * arch.heads):
        raise SourceError(
            f"{where}: hidden_size {arch.hidden_size} cannot be divided into {arch.heads} heads of pairs of "
            "units. Pass the sizes of the weights."
        )
    if not set(arch.full) <= set(range(arch.layers)):
        raise SourceError(f"{where}: full is {list(arch.full)}, and there are {arch.layers} layers, from 0 on.")
    require_buildable(lambda: Encoder(arch), where)
    return arch


def resize(arch: ModernArch, width: int | tuple[int, ...] | None, heads: int | None) -> ModernArch:
    """Options of the merged model. With rotary positions a head keeps its size, so that their number follows."""
    if isinstance(width, tuple):
        raise ConfigError(f"method.width: a text encoder has one width, got {list(width)}. Give one number.")
    size, own = width or arch.hidden_size, arch.hidden_size // arch.heads
    if size % own or heads not in (None, size // own):
        raise ConfigError(
            f"method.width={width}, method.heads={heads}: with rotary positions every head keeps its {own} units. "
            f"Pass a width that is a multiple of {own}, and heads=null."
        )
    units = max(1, round(arch.intermediate_size * size / arch.hidden_size))
    return replace(arch, hidden_size=size, heads=size // own, intermediate_size=units)


def signature(arch: ModernArch) -> dict[str, Any]:
    """Properties that all sources have to share; widths and numbers of heads may differ."""
    own = {
        "model type": "ModernBERT",
        "layers": arch.layers,
        "size of the vocabulary": arch.vocab_size,
        "units of a head": arch.hidden_size // arch.heads,
        "layers with full attention": list(arch.full),
        "activation": arch.activation,
        "activation of the pooler": arch.pooler_activation if arch.pooler else None,
        "features": features_read(arch),
    }
    shared = ("positions", "padding", "eps", "window", "theta", "local_theta", *BIASES, "pooler_bias")
    return own | {name: getattr(arch, name) for name in shared}


def config(arch: ModernArch) -> dict[str, Any]:
    """config.json of transformers' model."""
    kinds = ["full_attention" if i in arch.full else "sliding_attention" for i in range(arch.layers)]
    bases = {"full_attention": arch.theta, "sliding_attention": arch.local_theta}
    return {
        "architecture": arch.model_type,
        "model_type": arch.model_type,
        "architectures": [NAMES[arch.model_type].model],
        "vocab_size": arch.vocab_size,
        "pad_token_id": arch.padding,
        "hidden_size": arch.hidden_size,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "intermediate_size": arch.intermediate_size,
        "max_position_embeddings": arch.positions,
        "hidden_activation": arch.activation,
        "norm_eps": arch.eps,
        "layer_types": kinds,
        "local_attention": arch.window,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        **{name: getattr(arch, name) for name in BIASES},
        "classifier_bias": arch.pooler_bias,
        "classifier_activation": arch.pooler_activation,
        "classifier_pooling": "mean" if arch.pooling == "mean" else "cls",
        **({} if arch.pooling == "first" else {POOLING: arch.pooling}),
    }


def snippet(arch: ModernArch, head: str) -> str:
    """Python that loads a merged encoder with transformers."""
    states = "backbone(**texts).last_hidden_state"
    features = {"first": f"{states}[:, 0]", "tokens": states}.get(arch.pooling, "")
    if arch.pooling == "mean":
        used = "texts['attention_mask'][..., None]"
        features = f"({states} * {used}).sum(1) / {used}.sum(1)"
    if arch.pooler:
        inner = 'w["head.dense.weight"]' + (', w["head.dense.bias"]' if arch.pooler_bias else "")
        norm = f"({arch.hidden_size},), w['head.norm.weight']" + (", w['head.norm.bias']" * arch.norm_bias)
        function = {"silu": "silu", "swish": "silu", "relu": "relu"}.get(arch.pooler_activation, "gelu")
        approximate = ', approximate="tanh"' if "_" in arch.pooler_activation else ""
        lines = [
            'w = load_file("model.safetensors")  # ModernBERT has these layers only in its classifiers',
            "F = torch.nn.functional",
            f"dense = lambda x: F.{function}(F.linear(x, {inner}){approximate})",
            f"pooler = lambda x: F.layer_norm(dense(x), {norm}, eps={arch.eps:g})",
        ]
        head, features = "\n".join([*lines, head]), f"pooler({features})"
    return SNIPPET.format(head=head, features=features)


def block_names(module: nn.Module) -> list[str]:
    """Paths of the blocks."""
    encoder: Any = module
    return [f"layers.{i}" for i in range(encoder._arch.layers)]


MODERNBERT = Family(
    name="modernbert",
    arch=ModernArch,
    build=Encoder,
    resize=resize,
    table=table,
    entry="embeddings.tok_embeddings",
    signature=signature,
    config=config,
    parse=parse,
    snippet=snippet,
    head=lambda arch: NAMES[arch.model_type].head,
    heads=lambda arch: arch.heads,
    blocks=block_names,
    layers=block_names,
    kind="text",
    activated_features=True,
    library="transformers",
    sample=sample,
)
