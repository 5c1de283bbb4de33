"""Where a model's weights lie among the tensors of a file: prefixes of wrappers and trainers, EMA copies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fsmerge_cli.common.errors import SourceError, unknown

EMA = re.compile(r"(^|[._])ema([._]|$)")
"""A prefix of exponentially averaged weights: model_ema., state_dict_ema., ema.module., ..."""

HEADS = ("head", "classifier", "fc", "linear", "head.fc", "heads.head")
"""What a linear classifier beside a wrapped backbone is called."""

SHOWN = 3


@dataclass(frozen=True)
class Stripped:
    """The tensors of one model under their own names, heads beside it (`NAME.weight`), and what was left out.

    prefix: that was taken away. rest: all other tensors but those of other copies of the model.
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
    asked: str | None = None,
    ema: bool | None = None,
    head: str | None = None,
) -> Stripped:
    """Take the model that holds a tensor called `anchor` out of `tensors`, without its prefix.

    asked: the prefix, where the user says it. ema: True takes averaged weights, False ordinary ones, None ordinary
    ones where there are any. head: name of the module beside the model that is its head. Raises SourceError where
    several models are found and none is asked for.
    """
    ends = f".{anchor}"
    found = sorted(n.removesuffix(anchor) for n in tensors if n == anchor or n.endswith(ends))
    if not found:
        return Stripped("", tensors)
    prefix, notes = _choose(found, where, asked, ema)
    inner = tuple(p for p in found if p != prefix and p.startswith(prefix))  # copies inside the chosen one
    copies = tuple(p for p in found if not p.startswith(prefix) and not prefix.startswith(p))
    mine = {n: t for n, t in tensors.items() if n.startswith(prefix) and not n.startswith(inner)}
    own = {n.removeprefix(prefix): t for n, t in mine.items()}
    outside = {n: t for n, t in tensors.items() if n not in mine and not n.startswith((*inner, *copies))}
    heads = _heads(outside, prefix, head)
    taken = {id(t) for t in heads.values()}
    rest = {n: t for n, t in outside.items() if id(t) not in taken}
    return Stripped(prefix, own, heads, rest, notes)


def left_out(found: Stripped, name: str) -> list[str]:
    """A note on tensors that belong to no model that is merged."""
    rest = sorted(found.rest)
    if not rest:
        return []
    more = f" and {len(rest) - SHOWN} more" if len(rest) > SHOWN else ""
    return [f"'{name}': the weights under '{found.prefix}' were taken; left out: {', '.join(rest[:SHOWN])}{more}"]


def _choose(found: list[str], where: str, asked: str | None, ema: bool | None) -> tuple[str, tuple[str, ...]]:
    listed = ", ".join(repr(prefix) for prefix in found)
    if asked is not None:
        prefix = asked if not asked or asked.endswith(".") else f"{asked}."
        if prefix not in found:
            raise SourceError(f"{where}: {unknown('prefix', asked, [p.removesuffix('.') for p in found])}")
        return prefix, ()
    averaged = [prefix for prefix in found if EMA.search(prefix)]
    ordinary = [prefix for prefix in found if prefix not in averaged]
    wanted = ordinary or averaged
    if ema is not None:
        wanted = averaged if ema else ordinary
        if not wanted:
            kind, other = ("EMA", "false") if ema else ("ordinary", "true")
            raise SourceError(
                f"{where} holds no {kind} weights; models were found under {listed}. "
                f"Pass models.sources.N.ema={other} or null."
            )
    if len(wanted) > 1:
        raise SourceError(
            f"{where} holds {len(wanted)} models, under {', '.join(map(repr, wanted))}. "
            "Say which one to take: models.sources.N.prefix=..."
        )
    prefix = wanted[0]
    if ema is None and averaged and ordinary:
        return prefix, (
            f"the weights under '{prefix}' were taken, the EMA weights under '{averaged[0]}' were not "
            "(models.sources.N.ema=true takes them)",
        )
    return prefix, (f"only EMA weights were found, and taken ('{prefix}')",) if ema is None and averaged else ()


def _heads(outside: Mapping[str, Tensor], prefix: str, head: str | None) -> dict[str, Tensor]:
    """Linear classifiers beside a wrapped model: in the nearest scope that has one, under their own names."""
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
