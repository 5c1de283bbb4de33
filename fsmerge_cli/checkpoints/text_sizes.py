"""The options of a text encoder, and whether its config.json states the sizes that its weights have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures.bert import NAMES
from fsmerge_cli.architectures.bert.family import POOLING
from fsmerge_cli.checkpoints.accounting import require_stated
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief


def require_sizes(kind: str, config: Mapping[str, Any], found: Mapping[str, int], where: str) -> None:
    """Raise SourceError where config.json states other sizes, from which transformers builds another encoder."""
    names = {"layers": "num_hidden_layers", "positions": "max_position_embeddings", "types": "type_vocab_size"}
    if kind == "distilbert":
        names |= {"layers": "n_layers", "hidden_size": "dim", "intermediate_size": "hidden_dim"}
    only = {"types": NAMES[kind].types is not None, "embedding_size": kind == "electra"}
    require_stated(
        config, {names.get(name, name): size for name, size in found.items() if only.get(name, True)}, where
    )
    if config.get("pruned_heads"):
        raise SourceError(
            f"{where}: its config.json has pruned_heads {brief(config['pruned_heads'])}, so that "
            "transformers removes heads of attention. Only encoders with whole blocks can be merged."
        )


def require_classes(config: Mapping[str, Any], head: Mapping[str, Tensor], where: str) -> None:
    """Raise SourceError where config.json states another number of classes than the head has rows."""
    if "weight" in head and head["weight"].ndim == 2:
        require_stated(config, {"num_labels": len(head["weight"])}, where)


def stated_options(
    kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, of_tokens: bool
) -> dict[str, Any]:
    """Options from the shapes of the tensors, and from config.json what shapes do not show."""
    names = NAMES[kind]
    first = names.block.format(i=0)
    needed = (f"{names.word}.weight", f"{names.position}.weight", f"{first}.{names.hidden}.weight")
    for name in needed:
        if name not in tensors or tensors[name].ndim != 2:
            raise SourceError(f"{where} lacks the matrix {name} of {names.title}. Download the model again.")
    (vocabulary, embedded), hidden = tensors[needed[0]].shape, tensors[needed[2]].shape
    blocks = {
        m.group(1) for n in tensors if (m := re.match(re.escape(names.block).replace(r"\{i\}", r"(\d+)"), n))
    }
    types = tensors.get(f"{names.types}.weight") if names.types else None
    heads = config.get("n_heads" if kind == "distilbert" else "num_attention_heads")
    if heads is None:
        raise SourceError(f"{where}: its config.json does not state the number of attention heads.")
    shown_by = {
        "vocab_size": vocabulary,
        "hidden_size": hidden[1],
        "layers": len(blocks),
        "intermediate_size": hidden[0],
        "positions": tensors[needed[1]].shape[0],
        "types": 0 if types is None else types.shape[0],
    }
    require_sizes(kind, config, {**shown_by, "embedding_size": embedded}, where)
    return {
        "model_type": kind,
        **shown_by,
        "heads": heads,
        "embedding_size": None if embedded == hidden[1] else embedded,
        "activation": config.get("activation" if kind == "distilbert" else "hidden_act") or "gelu",
        "eps": 1e-12 if kind == "distilbert" else config.get("layer_norm_eps", 1e-12),
        "padding": (1 if names.after_padding else 0) if (pad := config.get("pad_token_id")) is None else pad,
        "pooler": f"{names.pooler}.weight" in tensors,
        "pooling": "tokens" if of_tokens else config.get(POOLING, "first"),
    }
