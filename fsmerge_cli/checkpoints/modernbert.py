"""The options of a ModernBERT, from the shapes of its tensors and from config.json what shapes do not show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures.bert.family import POOLING
from fsmerge_cli.checkpoints.accounting import require_stated
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief

KINDS = ("full_attention", "sliding_attention")
"""Of attention, as config.json calls them; the second one reads a window."""

THETA = {KINDS[0]: ("global_rope_theta", 160_000.0), KINDS[1]: ("local_rope_theta", 10_000.0)}
"""Older key of the base of the rotary positions, and transformers' default."""

EVERY = 3
"""Without a statement every third block has full attention."""


def of_language_model(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the layers behind the encoder are those of a masked language model, and not of a classifier."""
    return any(re.search(r"(^|\.)decoder\.", name) for name in tensors)


def options(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, of_tokens: bool
) -> dict[str, Any]:
    """The options as `ModernArch` has them. Raises SourceError where they cannot be told, or contradict."""
    words, hidden = (_matrix(tensors, n, where) for n in ("embeddings.tok_embeddings", "layers.0.mlp.Wo"))
    layers = len({m[1] for name in tensors if (m := re.match(r"layers\.(\d+)\.", name))})
    sizes = {"vocab_size": words.shape[0], "hidden_size": words.shape[1], "intermediate_size": hidden.shape[1]}
    require_stated(config, {**sizes, "num_hidden_layers": layers}, where)
    if config.get("num_attention_heads") is None:
        raise SourceError(f"{where}: its config.json does not state the number of attention heads.")
    bases = {kind: _base(config, kind, where) for kind in KINDS}
    mean = config.get("classifier_pooling") == "mean"
    pooling = "tokens" if of_tokens else config.get(POOLING, "mean" if mean else "first")
    pooler = "head.dense.weight" in tensors
    return {
        **sizes,
        "layers": layers,
        "heads": config["num_attention_heads"],
        "full": _full(config, layers, where),
        "positions": config.get("max_position_embeddings", 8192),
        "padding": config.get("pad_token_id") or 0,
        "activation": config.get("hidden_activation") or "gelu",
        "pooler_activation": config.get("classifier_activation") or "gelu",
        "eps": config.get("norm_eps", 1e-5),
        "window": config.get("local_attention", 128),
        "theta": bases[KINDS[0]],
        "local_theta": bases[KINDS[1]],
        "norm_bias": "final_norm.bias" in tensors,
        "attention_bias": "layers.0.attn.Wo.bias" in tensors,
        "mlp_bias": "layers.0.mlp.Wo.bias" in tensors,
        "pooler_bias": "head.dense.bias" in tensors,
        "pooler": pooler,
        "pooling": pooling if pooler or POOLING in config or of_tokens else "first",
    }


def _matrix(tensors: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    found = tensors.get(f"{name}.weight")
    if found is None or found.ndim != 2:
        raise SourceError(f"{where} lacks the matrix {name}.weight of ModernBERT. Download the model again.")
    return found


def _full(config: Mapping[str, Any], layers: int, where: str) -> Sequence[int]:
    """The blocks with full attention."""
    stated = config.get("layer_types")
    if stated is None:
        every = config.get("global_attn_every_n_layers", EVERY)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise SourceError(f"{where}: global_attn_every_n_layers in its config.json is {brief(every)}.")
        return range(0, layers, every)
    if not isinstance(stated, list) or len(stated) != layers or not {*map(str, stated)} <= {*KINDS}:
        raise SourceError(
            f"{where}: layer_types in its config.json should be a list of {KINDS[0]} or {KINDS[1]} for each of "
            f"{layers} layers, is {brief(stated)}."
        )
    return [i for i, kind in enumerate(stated) if kind == KINDS[0]]


def _base(config: Mapping[str, Any], kind: str, where: str) -> float:
    """The base of the rotary positions of one kind of attention. Raises SourceError for scaled ones."""
    own = (config.get("rope_parameters") or {}).get(kind) or {}
    scaled = own.get("rope_type", "default")
    if scaled != "default" or config.get("rope_scaling"):
        raise SourceError(
            f"{where} has scaled rotary positions ({brief(config.get('rope_scaling') or scaled)} in config.json). "
            "Only plain ones can be merged."
        )
    key, usual = THETA[kind]
    return float(own.get("rope_theta", config.get(key) or usual))
