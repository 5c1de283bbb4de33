"""Fold maps and source weights into ordinary weights: W' = sum_i M_i W_i U_i, b' = sum_i M_i b_i."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli.architectures.ports import Constant
from fsmerge_cli.common.hardware import double
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.groups import Group, group
from fsmerge_cli.supernet.joined_fold import Joined, fold_full, fold_joined, fold_joined_fused, is_full, join
from fsmerge_cli.supernet.low_rank_fold import fold_low_rank, is_low_rank
from fsmerge_cli.supernet.map_set import MergeMaps, StackedMaps
from fsmerge_cli.supernet.maps import Map

Prepare = Callable[[Tensor], Tensor]
FoldJoined = Callable[..., list[Tensor]]


def fold(plan: Plan, maps: MergeMaps, weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of one network of the merged size; pure and differentiable in the maps.

    plan: of the sources. maps: M, U and the per-unit vectors. weights: one state dict per source; the tensors are
    moved to the device of the maps one at a time.
    Returns a state dict for `plan.skeleton()`. A tensor that reads no space (pixels, tokens, tables, biases)
    gets no U. Source: FS-Merge, arXiv 2410.01483, section 4 (folding).
    """
    device = next(iter([*maps.parameters(), *maps.buffers()])).device
    units, stacked = maps.units(), maps.stacked()
    constants = {n: weights[0][n].to(device) for n, role in plan.roles.items() if isinstance(role, Constant)}
    folded = {**constants, **units}
    for found in group(plan, weights, batched=False):
        folded |= fold_group(found, _stacked(found, weights, lambda W: W.to(device)), stacked)
    return {name: folded[name] for name in plan.roles}


class PreparedFold:
    """A fold for repeated use: tensors are grouped and sources moved only once.

    batched: one product per kind of tensor on stacked sources (on a GPU the launch of a thousand small kernels
    costs more than their arithmetic); otherwise one tensor at a time, without copies. dtype: of the sources'
    matrices; with bf16 autocast they are rounded as in the network itself. maps: of the structure of these; then
    sources of equal shapes are folded by one product for all of them (None: source by source). compiled: compiles
    that fold.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Sequence[Mapping[str, Tensor]],
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        batched: bool = False,
        maps: StackedMaps | None = None,
        compiled: Callable[[FoldJoined], FoldJoined] | None = None,
    ) -> None:
        def prepare(W: Tensor) -> Tensor:
            return W.to(device, dtype)

        def prepare_fp32(W: Tensor) -> Tensor:
            return W.to(device)

        # Tensors that read no space (tables, tokens, biases) go into the residual stream, which stays fp32.
        self._groups: list[tuple[Group, list[Tensor]]] = []
        self._joined: list[Joined] = []
        for found in group(plan, weights, batched):
            stacks = _stacked(found, weights, prepare if found.role.read else prepare_fp32)
            if maps is not None and (joined := join(found, stacks, maps)):
                self._joined.append(joined)
            else:
                self._groups.append((found, stacks))
        self._fold_joined = compiled(fold_joined_fused) if compiled else fold_joined
        roles = plan.roles.items()
        self._constants = {n: weights[0][n].to(device) for n, role in roles if isinstance(role, Constant)}

    def __call__(
        self, stacked: StackedMaps, units: Mapping[str, Tensor], names: AbstractSet[str] | None = None
    ) -> dict[str, Tensor]:
        """Merged weights by name; `names`: fold only the groups that contain one of them (None: all)."""
        folded = {**self._constants, **units}
        for found, stacks in self._groups:
            if names is None or not names.isdisjoint(found.names):
                folded |= fold_group(found, stacks, stacked)
        joined = [one for one in self._joined if names is None or not names.isdisjoint(one.group.names)]
        if joined:
            merge, unmerge = zip(*(one.maps(stacked) for one in joined))
            results = self._fold_joined([one.sources for one in joined], merge, unmerge)
            for one, result in zip(joined, results):
                whole = result.reshape(
                    len(one.group.names), -1, result.shape[-1]
                )  # the parts of a tensor together
                folded |= dict(zip(one.group.names, whole.unbind(0)))
        return folded if names is None else {name: folded[name] for name in names}


def fold_group(found: Group, stacks: Sequence[Tensor], stacked: StackedMaps) -> dict[str, Tensor]:
    """Fold tensors of one kind; stacks: one [n, *shape] per source."""
    k, role = len(stacks), found.role
    matrices = stacks[0].ndim == 3 and role.write[0] == 0 and role.read is not None and role.read[0] == 1
    merge = [stacked.select("M", found.writes, i) for i in range(k)]
    unmerge = [stacked.select("U", found.reads, i) for i in range(k)] if role.read else []
    if role.read is None:
        with torch.autocast(stacks[0].device.type, enabled=False):
            terms = [_along(W, role.write[0], merge[i], last=False) for i, W in enumerate(stacks)]
            folded = sum(terms[1:], terms[0])
    elif matrices and is_low_rank([*merge, *unmerge]):
        folded = fold_low_rank(stacks, merge, unmerge)
    elif stacks[0].is_cuda and matrices and is_full([*merge, *unmerge]):
        folded = fold_full(stacks, merge, unmerge)
    else:
        terms = []
        for i, W in enumerate(stacks):
            read = _along(W, role.read[0], unmerge[i], last=True)
            terms.append(_along(read, role.write[0], merge[i], last=False))
        folded = sum(terms[1:], terms[0])
    return dict(zip(found.names, folded.unbind(0)))


def fold_head(head: Head, projector: Tensor) -> Head:
    """The head on merged features: W' = W U_out, bias unchanged (projector U_out is [d_i, d']).

    A head that normalises its input cannot absorb U_out; it keeps it as an extra linear layer.
    """
    combined = projector
    if head.projector is not None:
        combined = (double(head.projector) @ double(projector)).to(projector)
    if not head.absorbs_projector:
        return replace(head, projector=combined)
    product = double(head.weight) @ double(combined)
    return replace(head, weight=product.to(head.weight), projector=None)


def _stacked(found: Group, weights: Sequence[Mapping[str, Tensor]], prepare: Prepare) -> list[Tensor]:
    """One [n, *shape] per source; a view where n is 1."""
    if len(found.names) == 1:
        return [prepare(w[found.names[0]]).unsqueeze(0) for w in weights]
    return [torch.stack([prepare(w[name]) for name in found.names]) for w in weights]


def _along(W: Tensor, axis: int, maps: Map, last: bool) -> Tensor:
    """Apply stacked maps to `axis` of W [n, *shape], one map to each equal part of the axis.

    last: U from the right, otherwise M from the left.
    """
    parts = len(next(iter(maps.tensors().values()))) // len(W)
    moved = W.movedim(axis + 1, 1)  # [n, parts * cols, *others]
    split = moved.reshape(len(W) * parts, moved.shape[1] // parts, -1)
    mapped = maps.right(split.mT).mT if last else maps.left(split)
    return mapped.reshape(len(W), -1, *moved.shape[2:]).movedim(1, axis + 1)
