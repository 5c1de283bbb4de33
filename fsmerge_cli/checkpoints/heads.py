"""Task heads in checkpoints: how they are found, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.checkpoints.head_facts import Heads, heads_by_name, stored_facts
from fsmerge_cli.checkpoints.head_modules import HeadModule, read_head
from fsmerge_cli.checkpoints.text_models import NUMBER, OF_NUMBERS, predicts_a_number
from fsmerge_cli.common.errors import SourceError, unknown
from fsmerge_cli.common.shown import brief, listed
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source_spec import SourceSpec


def head_tensors(heads: Mapping[str, Head]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Content of heads.safetensors: tensors by `NAME.weight|bias|projector`, and their metadata."""
    tensors: dict[str, Tensor] = {}
    for name, head in heads.items():
        parts = {"weight": head.weight, "bias": head.bias, "projector": head.projector}
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    facts: dict[str, Any] = {"labels": {name: list(head.labels) for name, head in heads.items()}}
    kinds: dict[str, Any] = {
        "normalize": [name for name, head in heads.items() if head.normalize],
        "numbered": [name for name, head in heads.items() if not head.named],
        "regression": [name for name, head in heads.items() if head.regression],
        "layer_norm": {name: head.layer_norm for name, head in heads.items() if head.layer_norm is not None},
    }
    if len(heads) > 1:  # for the joint decision: the largest logit / temperature + shift
        kinds["temperatures"] = {name: head.temperature for name, head in heads.items()}
        kinds["shifts"] = {name: head.shift for name, head in heads.items()}
    return tensors, {**facts, **{kind: names for kind, names in kinds.items() if names}}


PARTS = ("weight", "bias", "projector")
"""The tensors of a linear head in heads.safetensors."""


def listed_heads(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """Names of the heads in heads.safetensors, in the order of the metadata if it lists them, else sorted."""
    names, stated = sorted(heads_by_name(tensors, metadata)), list(stored_facts(metadata)["labels"])
    return stated if sorted(stated) == names else names


def choose_head(
    spec: SourceSpec,
    stored: Heads,
    metadata: Mapping[str, str],
    config: Mapping[str, Any],
    where: str,
) -> tuple[Head | None, str, tuple[str, ...]]:
    """The head that an entry selects, or the only one (None: there is none); its name; notes. Raises SourceError.

    stored: see `heads_by_name`; metadata: of heads.safetensors. The labels in config.json are used if neither the
    entry nor the metadata has labels and there is one for every class.
    """
    facts = stored_facts(metadata)
    names = sorted(stored)
    if "" in names:
        raise SourceError(
            f"{where}: heads.safetensors holds {', '.join(sorted(stored['']))} without the name of a head. Call "
            "its tensors TASK.weight and TASK.bias."
        )
    chosen = spec.head or (names[0] if len(names) == 1 else None)
    if not names and spec.head is None:
        return None, "", ()
    if chosen is None:
        raise SourceError(
            f"{where} has {len(names)} heads: {listed(names)}. "
            "Choose the head of this task: models.sources.N.head=NAME"
        )
    if chosen not in names:
        raise SourceError(f"{where}: {unknown('head', chosen, names)}")
    found = _linear(spec, stored[chosen], chosen, where)
    weight, bias = found.weight, found.bias
    regression = chosen in facts["regression"] or predicts_a_number(spec, config, weight)
    target = () if regression else _target_note(config, where)
    if regression and len(weight) != 1:
        raise SourceError(
            f"{where} predicts {len(weight)} numbers per text (regression). fsmerge evaluates and distils one. "
            "Remove its head from the file to merge it without one."
        )
    given = (spec.labels,) if isinstance(spec.labels, str) else spec.labels
    stated, known = stated_labels(config), tuple(facts["labels"].get(chosen, ()))
    one_logit = weight.ndim == 2 and len(weight) == 1 and not regression
    if one_logit:
        _refuse_one_name(given or known or stated, chosen, where)
        weight, bias = _two_logits(weight, bias)
    fitting = stated if len(stated) == len(weight) else ()
    names_given = given or (() if chosen in facts["numbered"] else known) or fitting
    classes = names_given or known or (NUMBER if regression else tuple(str(c) for c in range(len(weight))))
    unit = chosen in facts["normalize"] if spec.normalize is None else spec.normalize
    layer_norm = facts["layer_norm"].get(chosen) if found.layer_norm is None else found.layer_norm
    if unit and layer_norm is not None:
        raise SourceError(
            f"{where}: the head '{chosen}' starts with a LayerNorm, and normalize=true would scale its features "
            "to unit length before. Remove models.sources.N.normalize."
        )
    notes = (*found.notes, *target)
    if regression:
        notes += (OF_NUMBERS,)
    if one_logit:
        low, high = (*classes, "?", "?")[:2]
        notes += (f"its head has one logit, read as two classes: '{high}' above 0, '{low}' at 0 and below",)
    if not given and not known and not stated and not _placeholders(config):
        notes += ("the class names in its config.json are not numbered from 0 on, so they are not used",)
    notes += _label_notes(given, (() if chosen in facts["numbered"] else known) or stated, len(weight))
    head = Head(weight, bias, classes, unit, bool(names_given), stored[chosen].get("projector"), layer_norm)
    head = replace(head, regression=regression, named=head.named or regression)
    head = replace(
        head, temperature=facts["temperatures"].get(chosen, 1.0), shift=facts["shifts"].get(chosen, 0.0)
    )
    return head, chosen, tuple(f"'{spec.name}': {note}" for note in notes)


def _linear(spec: SourceSpec, tensors: Mapping[str, Tensor], name: str, where: str) -> HeadModule:
    """The tensors of a head as one linear layer."""
    module = _module(spec.module, tensors, name)
    if set(tensors) <= set(PARTS) and "weight" in tensors and module is None:
        weight = tensors["weight"]
        if not weight.ndim:
            raise SourceError(f"{where}: {name}.weight is a scalar, not a classifier [classes, features].")
        return HeadModule(weight, tensors.get("bias"))
    return read_head(tensors, name, where, module)


def _module(source: Any, tensors: Mapping[str, Tensor], name: str) -> nn.Module | None:
    """The module of a head inside the user's torch module (None: not found, or the source is a file)."""
    if source is None:
        return None
    shapes = {part: tensor.shape for part, tensor in tensors.items()}
    found: dict[str, nn.Module] = {}
    for path, part in source.named_modules():
        if {n: t.shape for n, t in part.state_dict().items()} == shapes:
            found[path] = part
    last = name.rpartition(".")[2]
    named = [part for path, part in found.items() if path.rpartition(".")[2] == last]
    # Inside a backbone it may have another name (`fc`); then the values tell it from layers of the same shapes.
    if any(tensor.is_meta for tensor in tensors.values()):
        return next(iter(named or (found.values() if len(found) == 1 else ())), None)
    return next(iter(named or filter(_holds(tensors), found.values())), None)


def _holds(tensors: Mapping[str, Tensor]) -> Callable[[nn.Module], bool]:
    """Whether a module has these values."""

    def same(part: nn.Module) -> bool:
        own = part.state_dict()
        return all(torch.equal(own[name].detach().cpu().float(), t.float()) for name, t in tensors.items())

    return same


def _two_logits(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """[0, z] for the logit z: softmax is sigmoid(z), and the largest logit is the threshold at 0."""
    if bias is not None and bias.shape == (1,):
        bias = torch.cat([torch.zeros_like(bias), bias])
    return torch.cat([torch.zeros_like(weight), weight]), bias


def _refuse_one_name(names: tuple[str, ...], head: str, where: str) -> None:
    if len(names) == 1:
        raise SourceError(
            f"{where}: the head '{head}' has one logit, which decides between two classes, and there is one name, "
            f"'{names[0]}'. Pass both: models.sources.N.labels=[NAME_BELOW_0,NAME_ABOVE_0]"
        )


TARGETS = {
    "multi_label_classification": "several labels per image (multi-label)",
    "regression": "a number per image (regression)",
}
"""Hugging Face's `problem_type` of models that are not supported."""


def _target_note(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A note on a `problem_type` that is not known. Raises SourceError for those that are not supported."""
    kind = config.get("problem_type") or "single_label_classification"
    if what := TARGETS.get(str(kind).lower()):
        raise SourceError(
            f"{where} predicts {what}: problem_type in config.json is {brief(kind)}. fsmerge evaluates and "
            "distils one label per image, the one of the largest logit. Pass a model trained for that, or remove "
            "its head from the file to merge it without one."
        )
    if str(kind).lower() == "single_label_classification":
        return ()
    return (f"problem_type in its config.json is {brief(kind)}; it is read as one label per image",)


def _label_notes(given: tuple[str, ...] | None, listed: tuple[str, ...], rows: int) -> tuple[str, ...]:
    """Notes where the given labels contradict those that the files list, or where the latter cannot be used."""
    if not given:
        unfit = listed and len(listed) != rows
        what = f"its files list {len(listed)} class names, but its head has {rows} rows, so they are not used"
        return (what,) if unfit else ()
    different = [row for row, pair in enumerate(zip(given, listed)) if pair[0] != pair[1]]
    if not different or len(given) != len(listed):
        return ()
    what = "the same names in another order" if sorted(given) == sorted(listed) else "other names"
    row = different[0]
    return (
        f"its files list {what} than the given labels, which are used: row {row} is '{given[row]}', in its files "
        f"'{listed[row]}'",
    )


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


def _placeholders(config: Mapping[str, Any]) -> bool:
    """Whether a config.json without usable labels states no names either, or only LABEL_0, LABEL_1, ..."""
    found = config.get("label_names") or config.get("id2label") or {}
    names = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names)
