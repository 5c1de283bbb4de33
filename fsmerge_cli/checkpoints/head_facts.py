"""The heads in heads.safetensors, and what its metadata state of them: labels, kinds, temperatures, shifts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fsmerge_cli.checkpoints.files import as_float32, read_tensors
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief, listed

KEY = "fsmerge"
"""Key of the metadata, whose value is JSON."""

NAMES, FIGURES = ("normalize", "numbered", "regression"), ("layer_norm", "temperatures", "shifts")
"""Facts that are lists of heads, and facts that are one number per head."""

PLACE = r"(?:^|\.)(?:parametrizations\.weight\.)?[^.]*$"
"""The last part of a tensor's name, after the name of its module."""

Heads = Mapping[str, Mapping[str, Tensor]]
"""Name of a head -> name inside the head (`weight`, `0.bias`) -> tensor."""


def file_heads(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> Heads:
    """The heads in heads.safetensors in fp32. Raises SourceError for values that are not finite and real."""
    return heads_by_name(as_float32(tensors, where), metadata)


def heads_by_name(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Heads:
    """The heads in heads.safetensors: name -> name inside the head -> tensor.

    The metadata list the names. Otherwise a name ends before the last part, and several numbered modules under one
    name (`NAME.0`, `NAME.1`) are the layers of one head.
    """
    known = sorted(stored_facts(metadata)["labels"], key=len, reverse=True)
    places = {name: re.split(PLACE, name)[0] for name in tensors}
    numbered: dict[str, set[str]] = {}
    for place in places.values():
        numbered.setdefault(re.sub(r"(\.\d+)+$", "", place), set()).add(place)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem = re.sub(r"(\.\d+)+$", "", places[name])
        own = next((k for k in known if name.startswith(f"{k}.")), None)
        own = own or (stem if len(numbered[stem]) > 1 else places[name])
        found.setdefault(own, {})[name.removeprefix(f"{own}.")] = tensor
    return found


def read_heads(folder: Path, where: str, headers: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the heads.safetensors in a folder. Raises SourceError where they do not fit."""
    tensors, metadata = read_tensors(folder / "heads.safetensors", where, headers)
    try:
        facts = _strict(metadata)
        _require_heads(facts, sorted(heads_by_name(tensors, metadata)))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SourceError(
            f"{where}: its metadata (key '{KEY}': labels, temperatures, ...) cannot be used: {why}. Restore "
            "the file, or remove that key to read the heads without labels."
        ) from None
    return tensors, metadata


def stored_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Labels by head, and the further facts; empty where the metadata state none that can be used."""
    try:
        return _strict(metadata)
    except (ValueError, RecursionError):
        return _strict({})


def _strict(metadata: Mapping[str, str]) -> dict[str, Any]:
    stored = _mapping(json.loads(metadata.get(KEY, "{}"), object_pairs_hook=_once), "it")
    if unknown := sorted(stored.keys() - {"labels", *NAMES, *FIGURES}):
        raise ValueError(f"it has {brief(unknown[0])}, which this version of fsmerge does not know")
    labels = {
        name: _texts(own, f"labels.{name}") for name, own in _mapping(stored.get("labels", {}), "labels").items()
    }
    names = {kind: _texts(stored.get(kind, []), kind) for kind in NAMES}
    return {"labels": labels, **names, **{kind: _figures(stored.get(kind, {}), kind) for kind in FIGURES}}


def _require_heads(facts: Mapping[str, Any], heads: Sequence[str]) -> None:
    """Raise ValueError where the facts are those of other heads than the tensors are."""
    for kind, own in facts.items():
        whole = kind in ("labels", "temperatures", "shifts")
        if own and ((whole and sorted(own) != [*heads]) or not {*own} <= {*heads}):
            raise ValueError(f"{kind} has {listed(sorted(own))}, and the tensors are those of {listed(heads)}")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _mapping(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{what} should hold keys and values, and is {brief(found)}")
    return found


def _texts(found: Any, what: str) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{what} should be a list of texts, and is {brief(found)}")
    return found


def _figures(found: Any, what: str) -> dict[str, float]:
    """Finite numbers by head, which are positive unless they are shifts."""
    for name, value in _mapping(found, what).items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (value <= 0 and what != "shifts"):
            raise ValueError(
                f"{what}.{name} should be a {'' if what == 'shifts' else 'positive '}number, and is {brief(value)}"
            )
    return {name: float(value) for name, value in found.items()}
