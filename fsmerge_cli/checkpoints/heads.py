"""Task heads in checkpoints: how they are found, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsmerge_cli.common.errors import SourceError, unknown
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source_spec import SourceSpec


def head_tensors(heads: Mapping[str, Head]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Content of heads.safetensors: tensors by `NAME.weight|bias|projector`, and their metadata."""
    tensors: dict[str, Tensor] = {}
    for name, head in heads.items():
        parts = {"weight": head.weight, "bias": head.bias, "projector": head.projector}
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    facts = {"labels": {name: list(head.labels) for name, head in heads.items()}}
    kinds = {
        "normalize": [name for name, head in heads.items() if head.normalize],
        "numbered": [name for name, head in heads.items() if not head.named],
    }
    return tensors, {**facts, **{kind: names for kind, names in kinds.items() if names}}


def head_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the heads among `NAME.weight`, `NAME.bias`, ..., sorted."""
    return sorted(name.removesuffix(".weight") for name in tensors if name.endswith(".weight"))


def listed_heads(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """Names of the heads in heads.safetensors, in the order of the metadata if it lists them, else sorted."""
    names, stated = head_names(tensors), list(_stored_facts(metadata)["labels"])
    return stated if sorted(stated) == names else names


def choose_head(
    spec: SourceSpec,
    stored: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    stated: tuple[str, ...],
    where: str,
) -> Head | None:
    """The head that an entry selects, or the only one; None if there is none. Raises SourceError.

    stored: tensors by `NAME.weight|bias|projector`; metadata: of heads.safetensors. stated: labels in config.json,
    used if neither the entry nor the metadata has labels and there is one for every class.
    """
    facts = _stored_facts(metadata)
    names = head_names(stored)
    chosen = spec.head or (names[0] if len(names) == 1 else None)
    if not names and spec.head is None:
        return None
    if chosen is None:
        raise SourceError(
            f"{where} has {len(names)} heads: {', '.join(names)}. "
            "Choose the head of this task: models.sources.N.head=NAME"
        )
    if chosen not in names:
        raise SourceError(f"{where}: {unknown('head', chosen, names)}")
    weight = stored[f"{chosen}.weight"]
    if not weight.ndim:
        raise SourceError(f"{where}: {chosen}.weight is a scalar, not a classifier [classes, features].")
    given = (spec.labels,) if isinstance(spec.labels, str) else spec.labels
    fitting = stated if len(stated) == len(weight) else ()
    known = tuple(facts["labels"].get(chosen, ()))
    names_given = given or (() if chosen in facts["numbered"] else known) or fitting
    classes = names_given or known or tuple(str(c) for c in range(len(weight)))
    unit = chosen in facts["normalize"] if spec.normalize is None else spec.normalize
    projector = stored.get(f"{chosen}.projector")
    return Head(weight, stored.get(f"{chosen}.bias"), classes, unit, bool(names_given), projector)


def stated_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels in a config.json of timm (`label_names`) or of Hugging Face (`id2label`); empty if there are none.

    Hugging Face's placeholders LABEL_0, LABEL_1, ... count as no labels.
    """
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(names, list):
        return tuple(str(name) for name in names)
    stated = config.get("id2label")
    table = {str(row): name for row, name in stated.items()} if isinstance(stated, dict) else {}
    if not all(str(i) in table for i in range(len(table))):
        return ()
    found = tuple(str(table[str(i)]) for i in range(len(table)))
    return () if found == tuple(f"LABEL_{i}" for i in range(len(found))) else found


def _stored_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Labels, and which heads normalise features or have row numbers as labels, from the metadata of fsmerge."""
    try:
        stored = json.loads(metadata.get("fsmerge", "{}"))
        labels = {str(name): [str(x) for x in entry] for name, entry in stored.get("labels", {}).items()}
        kinds = {kind: [str(name) for name in stored.get(kind, [])] for kind in ("normalize", "numbered")}
        return {"labels": labels, **kinds}
    except (ValueError, RecursionError, AttributeError, TypeError):
        return {"labels": {}, "normalize": [], "numbered": []}
