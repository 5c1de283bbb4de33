"""Finding a model's weights among the tensors of a file: prefixes of wrappers and trainers, EMA copies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fsmerge_cli.common.errors import SourceError, unknown
from fsmerge_cli.common.shown import few

EMA = re.compile(r"(^|[._])ema([._]|$)")
"""A prefix of exponentially averaged weights: model_ema., state_dict_ema., ema.module., ..."""

HEADS = ("head", "classifier", "fc", "linear", "heads")
"""Names of a classifier next to a wrapped backbone."""

WRAPPERS = frozenset(
    {"_orig_mod", "module", "_module", "_forward_module", "_fsdp_wrapped_module", "_fpw_module"}
    | {"_checkpoint_wrapped_module"}
)
"""Parts of a name that torch.compile, DataParallel, FSDP, checkpointing and their like insert, at any depth."""


@dataclass(frozen=True)
class Stripped:
    """The tensors of one model without their prefix, heads next to it, and ignored tensors.

    prefix: that was removed. heads: name of the head -> name inside it -> tensor. beside: what else is in the
    module that contains these heads. rest: all other tensors, except those of other copies of the model.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    rest: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def unwrapped(name: str) -> str:
    """A tensor's name, or a prefix, without the parts of wrappers.

    >>> unwrapped("module.blocks.0._orig_mod.attn._checkpoint_wrapped_module.qkv.weight")
    'blocks.0.attn.qkv.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under names without wrappers; unchanged where two would get the same name."""
    found = {unwrapped(name): tensor for name, tensor in tensors.items()}
    return found if len(found) == len(tensors) else dict(tensors)


def strip(
    tensors: Mapping[str, Tensor],
    anchor: str,
    where: str,
    chosen: str | None = None,
    ema: bool | None = None,
    head: str | None = None,
) -> Stripped:
    """Extract the model that has a tensor called `anchor` from `tensors`, without its prefix.

    chosen: the prefix, if the user gives it. ema: True uses averaged weights, False ordinary ones, None ordinary
    ones if there are any. head: name of the module next to the model that is its head. Raises SourceError if
    several models are found and none is chosen.
    """
    ends = f".{anchor}"
    found = sorted(n.removesuffix(anchor) for n in tensors if n == anchor or n.endswith(ends))
    if not found:
        return Stripped("", tensors)
    prefix, notes = _choose(found, where, chosen, ema)
    inner = tuple(p for p in found if p != prefix and p.startswith(prefix))  # copies inside the chosen one
    copies = tuple(p for p in found if not p.startswith(prefix) and not prefix.startswith(p))
    mine = {n: t for n, t in tensors.items() if n.startswith(prefix) and not n.startswith(inner)}
    own = {n.removeprefix(prefix): t for n, t in mine.items()}
    outside = {n: t for n, t in tensors.items() if n not in mine and not n.startswith((*inner, *copies))}
    scope, heads = _heads(outside, prefix, head)
    taken = {f"{scope}{name}.{part}" for name, parts in heads.items() for part in parts}
    rest = {n: t for n, t in outside.items() if n not in taken}
    beside = {n: t for n, t in rest.items() if heads and n.startswith(scope)}
    return Stripped(prefix, own, heads, beside, rest, notes)


def ignored_notes(found: Stripped, name: str) -> list[str]:
    """A note on tensors that were ignored; empty if there are none."""
    rest = sorted(found.rest)
    if not rest:
        return []
    return [f"'{name}': the weights under '{found.prefix}' were used; ignored: {few(rest)}"]


def _choose(found: list[str], where: str, chosen: str | None, ema: bool | None) -> tuple[str, tuple[str, ...]]:
    listed = ", ".join(repr(prefix) if prefix else "'' (no prefix)" for prefix in found)
    if chosen is not None:
        prefix = chosen if not chosen or chosen.endswith(".") else f"{chosen}."
        if prefix not in found and unwrapped(prefix) in found:
            prefix = unwrapped(prefix)
        if prefix not in found:
            raise SourceError(f"{where}: {unknown('prefix', chosen, [p.removesuffix('.') for p in found])}")
        return prefix, ()
    averaged = [prefix for prefix in found if EMA.search(prefix)]
    ordinary = [prefix for prefix in found if prefix not in averaged]
    candidates = ordinary or averaged
    if ema is not None:
        candidates = averaged if ema else ordinary
        if not candidates:
            kind, other = ("EMA", "false") if ema else ("ordinary", "true")
            raise SourceError(
                f"{where} contains no {kind} weights; models were found under {listed}. "
                f"Pass models.sources.N.ema={other} or null."
            )
    if len(candidates) > 1:
        raise SourceError(
            f"{where} contains {len(candidates)} models, under {', '.join(map(repr, candidates))}. "
            "Choose one with models.sources.N.prefix=..."
        )
    prefix = candidates[0]
    if ema is None and averaged and ordinary:
        return prefix, (
            f"the weights under '{prefix}' were used, the EMA weights under '{averaged[0]}' were not "
            "(models.sources.N.ema=true uses them)",
        )
    return prefix, (f"only EMA weights were found, and used ('{prefix}')",) if ema is None and averaged else ()


def _heads(
    outside: Mapping[str, Tensor], prefix: str, head: str | None
) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """The heads next to a wrapped model: those in the nearest enclosing scope that has any; and that scope."""
    parts = prefix.rstrip(".").split(".")
    names = dict.fromkeys((*([head] if head else ()), *HEADS))
    for depth in range(len(parts) - 1, -1, -1):
        scope = "".join(f"{part}." for part in parts[:depth])
        found: dict[str, dict[str, Tensor]] = {}
        taken: set[str] = set()
        for name in names:
            start = f"{scope}{name}."
            own = {n: t for n, t in outside.items() if n.startswith(start) and n not in taken}
            taken |= set(own)
            if own:
                found[name] = {n.removeprefix(start): t for n, t in own.items()}
        if found:
            return scope, found
    return "", {}
