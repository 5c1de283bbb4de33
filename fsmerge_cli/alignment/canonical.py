"""Canonical correlation analysis (CCA) between the units of two networks: linear maps from one to the other.

Horoi et al., arXiv 2407.05385, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from fsmerge_cli.alignment.matching import assignment
from fsmerge_cli.alignment.permutation import Permutations
from fsmerge_cli.architectures.ports import Unit
from fsmerge_cli.models.plan import Plan

PERMUTATION = 1e-6
"""Canonical correlations below it do not determine their directions, which then follow the permutation."""


def canonical_maps(
    covariance: Tensor, cross: Tensor, other: Tensor, ridge: float, order: Tensor
) -> tuple[Tensor, Tensor]:
    """T [n, n] with T x_2 in the basis of x_1, and its inverse, fp64.

    covariance, other: of x_1 and of x_2, [n, n]; `ridge` times their mean variance is added to their diagonals.
    cross: of x_1 with x_2. With W_1, W_2 the canonical projections (rows times W), T = (W_2 W_1^-1)^T. That is
    C_1^1/2 R C_2^-1/2, with R the orthogonal factor of the polar decomposition of C_1^-1/2 C_12 C_2^-1/2, whose
    singular values are the canonical correlations. T x_2 has the covariance C_1.

    order: the permutation of x_2 that matches x_1; it decides what the correlations leave open.
    """
    root, inverse = _roots(covariance, ridge)
    other_root, other_inverse = _roots(other, ridge)
    matched = torch.eye(len(order), dtype=cross.dtype)[order]
    P, _, Qh = torch.linalg.svd(inverse @ cross @ other_inverse + PERMUTATION * matched)
    R = P @ Qh
    return root @ R @ other_inverse, other_root @ R.T @ inverse


def takes_linear_maps(plan: Plan, space: str) -> bool:
    """Whether units of a space may be mixed: it has no per-unit vectors (norms), and weights read it.

    The scores of attention read queries and keys themselves, and know only permutations here.
    """
    units = any(isinstance(role, Unit) and role.port.space == space for role in plan.roles.values())
    return not units and any(port.space == space for port in plan.reads)


def head_orders(plan: Plan, source: int, covariances: Mapping[str, Tensor], ridge: float) -> dict[str, Tensor]:
    """By space, the heads of a source in the order of source 1's, by the sums of their canonical correlations.

    Only of spaces that are mapped head by head: their units need not correlate one by one.
    """
    orders = {}
    for name, space in plan.spaces.items():
        if space.heads is None or space.order != name or not takes_linear_maps(plan, name):
            continue
        H, whole, start = space.heads[0], covariances[name], source * space.merged
        rows = torch.arange(space.merged).chunk(H)
        sides = [[_roots(whole[own + i][:, own + i], ridge)[1] for own in rows] for i in (0, start)]
        scores = torch.zeros(H, H, dtype=torch.float64)
        for g, h in product(range(H), range(H)):
            cross = whole[rows[g]][:, rows[h] + start]
            scores[g, h] = torch.linalg.svdvals(sides[0][g] @ cross @ sides[1][h]).sum()
        orders[name] = assignment(scores)
    return orders


def maps_of_source(
    plan: Plan, source: int, covariances: Mapping[str, Tensor], orders: Permutations, ridge: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """T and its inverse of every space, from a source to source 1, [n, n].

    covariances: by space, of the units of all sources, [k n, k n]. orders: the matching permutations, with which
    all spaces are mapped that cannot be mixed. Of values, each head is mapped to the head that it is matched with.
    """
    there, back = {}, {}
    for name, space in plan.spaces.items():
        n, order = space.merged, orders[name]
        T = torch.eye(n, dtype=torch.float64)[order]
        there[name], back[name] = T, T.T
        if not takes_linear_maps(plan, name):
            continue
        heads = space.heads[0] if space.heads else 1
        there[name], back[name] = torch.zeros_like(T), torch.zeros_like(T)
        for rows in torch.arange(n).chunk(heads):
            columns = order[rows].sort().values  # a whole head
            inner = torch.searchsorted(columns, order[rows])
            own = columns + source * n
            whole = covariances[name]
            parts = whole[rows][:, rows], whole[rows][:, own], whole[own][:, own]
            T, inverse = canonical_maps(*parts, ridge, inner)
            there[name][rows[:, None], columns], back[name][columns[:, None], rows] = T, inverse
    return there, back


def _roots(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The square root of the regularised covariance, and the inverse of that."""
    mean = float(covariance.diagonal().mean()) or 1.0
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (values.clamp(min=0) + ridge * mean).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
