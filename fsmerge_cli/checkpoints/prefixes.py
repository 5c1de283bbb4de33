"""Finding a model's weights among the tensors of a file: prefixes of wrappers and trainers, EMA copies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fsmerge_cli.common.errors import SourceError, unknown

EMA = re.compile(r"(^|[._])ema([._]|$)")
"""A prefix of exponentially averaged weights: model_ema., state_dict_ema., ema.module., ..."""

HEADS = ("head", "classifier", "fc", "linear", "head.fc", "heads.head")
"""Names of a linear classifier next to a wrapped backbone."""

MAX_LISTED = 3
"""How many ignored tensors a note lists."""


@dataclass(frozen=True)
class Stripped:
    """The tensors of one model without their prefix, heads next to it (`NAME.weight`), and ignored tensors.

    prefix: that was removed. rest: all other tensors, except those of other copies of the model.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    rest: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
    heads = _heads(outside, prefix, head)
    taken = {id(t) for t in heads.values()}
    rest = {n: t for n, t in outside.items() if id(t) not in taken}
    return Stripped(prefix, own, heads, rest, notes)


def ignored_notes(found: Stripped, name: str) -> list[str]:
    """A note on tensors that were ignored; empty if there are none."""
    rest = sorted(found.rest)
    if not rest:
        return []
    more = f" and {len(rest) - MAX_LISTED} more" if len(rest) > MAX_LISTED else ""
    return [
        f"'{name}': the weights under '{found.prefix}' were used; ignored: {', '.join(rest[:MAX_LISTED])}{more}"
    ]


def _choose(found: list[str], where: str, chosen: str | None, ema: bool | None) -> tuple[str, tuple[str, ...]]:
    listed = ", ".join(repr(prefix) for prefix in found)
    if chosen is not None:
        prefix = chosen if not chosen or chosen.endswith(".") else f"{chosen}."
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


def _heads(outside: Mapping[str, Tensor], prefix: str, head: str | None) -> dict[str, Tensor]:
    """Linear classifiers next to a wrapped model: those of the nearest enclosing scope that has any."""
    parts = prefix.rstrip(".").split(".")
    for depth in range(len(parts) - 1, -1, -1):
        scope = "".join(f"{part}." for part in parts[:depth])
        names = [n for n in dict.fromkeys((*([head] if head else ()), *HEADS)) if f"{scope}{n}.weight" in outside]
        linear = [n for n in names if outside[f"{scope}{n}.weight"].ndim == 2]
        if linear:
            return {
                f"{n}.{part}": outside[f"{scope}{n}.{part}"]
                for n in linear
                for part in ("weight", "bias")
                if f"{scope}{n}.{part}" in outside
            }
    return {}
