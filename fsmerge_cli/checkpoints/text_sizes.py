"""Whether the config.json of a text encoder states the sizes that its weights have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures.bert import NAMES
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
