"""Turn maps and source weights into ordinary weights: W' = sum_i M_i W_i U_i, b' = sum_i M_i b_i."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli.architectures.ports import Constant
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.groups import Group, group
from fsmerge_cli.supernet.low_rank_fold import fold_thin, is_thin
from fsmerge_cli.supernet.map_set import MergeMaps, OpenMaps
from fsmerge_cli.supernet.maps import Map

Prepare = Callable[[Tensor], Tensor]


def fold(plan: Plan, maps: MergeMaps, weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of one network of the merged size; pure and differentiable in the maps.

    plan: of the sources. maps: M, U and the per-unit vectors. weights: one state dict per source; every tensor is
    moved to the device of the maps when its turn comes.
    Returns a state dict for `plan.skeleton()`. A tensor that reads no space (pixels, tokens, tables, biases)
    gets no U. Source: FS-Merge, arXiv 2410.01483, section 4 (folding).
    """
    device = next(iter([*maps.parameters(), *maps.buffers()])).device
    units, opened = maps.units(), maps.open()
    constants = {n: weights[0][n].to(device) for n, role in plan.roles.items() if isinstance(role, Constant)}
    folded = {**constants, **units}
    for found in group(plan, weights, batched=False):
        folded |= fold_group(found, _stacked(found, weights, lambda W: W.to(device)), opened)
    return {name: folded[name] for name in plan.roles}


class Folder:
    """Folds again and again: groups are found, and sources moved, once.

    batched: one product per kind of tensor, for which the sources are stacked (on a GPU a thousand small kernels
    cost more than their arithmetic); otherwise one tensor at a time, on the sources as they lie. dtype: of the
    sources' matrices; with bf16 autocast their rounding is that of the network itself.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Sequence[Mapping[str, Tensor]],
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        batched: bool = False,
    ) -> None:
        def prepare(W: Tensor) -> Tensor:
            return W.to(device, dtype)

        def keep(W: Tensor) -> Tensor:
            return W.to(device)

        # What reads no space (tables, tokens, biases) goes into the residual stream, which stays fp32.
        groups = group(plan, weights, batched)
        self._groups = [(g, _stacked(g, weights, prepare if g.role.read else keep)) for g in groups]
        roles = plan.roles.items()
        self._constants = {n: weights[0][n].to(device) for n, role in roles if isinstance(role, Constant)}

    def __call__(
        self, opened: OpenMaps, units: Mapping[str, Tensor], names: AbstractSet[str] | None = None
    ) -> dict[str, Tensor]:
        """Merged weights by name; `names` picks groups that hold one of them (None: all)."""
        folded = {**self._constants, **units}
        for found, stacks in self._groups:
            if names is None or not names.isdisjoint(found.names):
                folded |= fold_group(found, stacks, opened)
        return folded if names is None else {name: folded[name] for name in names}


def fold_group(found: Group, stacks: Sequence[Tensor], opened: OpenMaps) -> dict[str, Tensor]:
    """Fold tensors of one kind; stacks: one [n, *shape] per source."""
    k, role = len(stacks), found.role
    merge = [opened.pick("M", found.writes, i) for i in range(k)]
    unmerge = [opened.pick("U", found.reads, i) for i in range(k)] if role.read else []
    if role.read is None:
        with torch.autocast(stacks[0].device.type, enabled=False):
            terms = [_along(W, role.write[0], merge[i], last=False) for i, W in enumerate(stacks)]
            folded = sum(terms[1:], terms[0])
    elif role.write[0] == 0 and role.read[0] == 1 and is_thin([*merge, *unmerge]):
        folded = fold_thin(stacks, merge, unmerge)
    else:
        terms = []
        for i, W in enumerate(stacks):
            read = _along(W, role.read[0], unmerge[i], last=True)
            terms.append(_along(read, role.write[0], merge[i], last=False))
        folded = sum(terms[1:], terms[0])
    return dict(zip(found.names, folded.unbind(0)))


def fold_head(head: Head, projector: Tensor) -> Head:
    """The head that reads merged features: W' = W U_out, bias unchanged (projector U_out is [d_i, d']).

    A head that scales its input to unit length cannot take U_out in; it keeps it as one extra linear.
    """
    kept = (
        projector if head.projector is None else (head.projector.double() @ projector.double()).to(projector.dtype)
    )
    if head.normalize:
        return replace(head, projector=kept)
    product = head.weight.double() @ kept.double()
    return replace(head, weight=product.to(head.weight.dtype), projector=None)


def _stacked(found: Group, weights: Sequence[Mapping[str, Tensor]], prepare: Prepare) -> list[Tensor]:
    """One [n, *shape] per source; a view where n is 1."""
    if len(found.names) == 1:
        return [prepare(w[found.names[0]]).unsqueeze(0) for w in weights]
    return [torch.stack([prepare(w[name]) for name in found.names]) for w in weights]


def _along(W: Tensor, axis: int, maps: Map, last: bool) -> Tensor:
    """Apply one stacked map to `axis` of W [n, *shape], one map to each equal part of it.

    `last`: U from the right, otherwise M from the left.
    """
    parts = len(next(iter(maps.tensors().values()))) // len(W)
    moved = W.movedim(axis + 1, 1)  # [n, parts * cols, *others]
    split = moved.reshape(len(W) * parts, moved.shape[1] // parts, -1)
    mapped = maps.right(split.mT).mT if last else maps.left(split)
    return mapped.reshape(len(W), -1, *moved.shape[2:]).movedim(1, axis + 1)
