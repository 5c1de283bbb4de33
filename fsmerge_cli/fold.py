"""Turn maps and source weights into ordinary weights: W' = sum_i M_i W_i U_i, b' = sum_i M_i b_i."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli.maps import Map, MergeMaps
from fsmerge_cli.plan import Plan
from fsmerge_cli.sources import Head
from fsmerge_cli.spaces import Constant, Mapped


def fold(plan: Plan, maps: MergeMaps, weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of one network of the merged size; pure and differentiable in the maps.

    plan: of the sources. maps: M, U and the per-unit vectors. weights: one state dict per source.
    Returns a state dict for `plan.skeleton()`. A tensor that reads no space (pixels, tokens, tables, biases)
    gets no U. Source: FS-Merge, arXiv 2410.01483, section 4 (folding).
    """
    units = maps.units()
    folded: dict[str, Tensor] = {}
    for name, role in plan.roles.items():
        if isinstance(role, Constant):
            folded[name] = weights[0][name]
        elif isinstance(role, Mapped):
            terms = [_fold_tensor(w[name], role, maps, i) for i, w in enumerate(weights)]
            folded[name] = sum(terms[1:], terms[0])
        else:
            folded[name] = units[name]
    return folded


def fold_head(head: Head, readout: Tensor) -> Head:
    """The head that reads merged features: W' = W U_out, bias unchanged (readout U_out is [d_i, d']).

    A head that scales its input to unit length cannot take U_out in; it keeps it as one extra linear.
    """
    kept = readout if head.readout is None else (head.readout.double() @ readout.double()).to(readout.dtype)
    if head.normalize:
        return replace(head, readout=kept)
    product = head.weight.double() @ kept.double()
    return replace(head, weight=product.to(head.weight.dtype), readout=None)


def _fold_tensor(W: Tensor, role: Mapped, maps: MergeMaps, source: int) -> Tensor:
    if role.read is not None:
        axis, ports = role.read
        W = _along(W, axis, [maps.read(port, source) for port in ports], last=True)
    axis, ports = role.write
    return _along(W, axis, [maps.write(port, source) for port in ports], last=False)


def _along(W: Tensor, axis: int, parts: Sequence[Map], last: bool) -> Tensor:
    """Apply one map to each equal part of `axis`: U from the right (`last`), M from the left."""
    place = -1 if last else 0
    chunks = W.movedim(axis, place).chunk(len(parts), dim=place)
    mapped = [m.right(c) if last else m.left(c) for m, c in zip(parts, chunks)]
    joined = mapped[0] if len(mapped) == 1 else torch.cat(mapped, dim=place)
    return joined.movedim(place, axis)
