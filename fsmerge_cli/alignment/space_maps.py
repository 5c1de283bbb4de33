"""The merged network of maps that are given per space: M [d', d_i] and U [d_i, d'] of every source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsmerge_cli.architectures.ports import Unit
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import maps_of_spaces
from fsmerge_cli.training.problem import Problem, Solution


def folded(
    problem: Problem, merge: Mapping[str, Sequence[Tensor]], unmerge: Mapping[str, Sequence[Tensor]]
) -> Solution:
    """W' = sum_i M_i W_i U_i with the maps of `merge` and `unmerge`, by space and source.

    Per-unit vectors become sum_i M_i u_i. The projectors are the U_i of the features.
    """
    plan, weights = problem.plan, problem.weights("cpu")  # the fold moves them, one at a time
    units = merged_units(plan, weights, merge)
    maps = maps_of_spaces(plan, merge, unmerge, units).to(problem.device)
    projectors = tuple(plan.projector([U]).float().to(problem.device) for U in unmerge[plan.features.space])
    return Solution(fold(plan, maps, weights), projectors, maps=maps)


def merged_units(
    plan: Plan, weights: Sequence[Mapping[str, Tensor]], merge: Mapping[str, Sequence[Tensor]]
) -> dict[str, Tensor]:
    """All per-unit tensors of the merged network: sum_i M_i u_i."""
    units = {name: role for name, role in plan.roles.items() if isinstance(role, Unit)}
    return {
        name: merged_unit(role, [w[name] for w in weights], merge[role.port.space], plan)
        for name, role in units.items()
    }


def merged_unit(role: Unit, vectors: Sequence[Tensor], merge: Sequence[Tensor], plan: Plan) -> Tensor:
    """sum_i M_i u_i; a vector shared by all heads follows the order of the first head."""
    space = plan.spaces[role.port.space]
    terms = []
    for vector, M in zip(vectors, merge):
        own = M
        if role.per_head and space.heads:
            rows = M[: space.merged // space.heads[0]]
            own = rows.reshape(len(rows), -1, len(vector)).sum(1)
        terms.append(torch.tensordot(own.double().cpu(), vector.double().cpu(), 1))
    return torch.stack(terms).sum(0).to(vectors[0].dtype)
