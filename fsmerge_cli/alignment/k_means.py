"""K-means of units by the distances of their activations, which a Gram matrix determines."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 100
"""Most rounds of one clustering."""


def weighted_k_means(gram: Tensor, weights: Tensor, clusters: int, seed: int, tries: int = 10) -> Tensor:
    """The cluster of every unit, [n], each of 0 ... clusters - 1 occurring: the best of several tries.

    Minimises sum_u w_u |x_u - c(u)|^2 with the weighted means c of the clusters (Lloyd). gram: inner products of
    the units' activations, [n, n]. weights: [n], positive.
    """
    random = torch.Generator().manual_seed(seed)
    best, least = torch.zeros(0), torch.inf
    for _ in range(tries):
        member = _started(gram, weights, clusters, random)
        for _ in range(ROUNDS):
            distances = squared_distances(gram, weights, member, clusters)
            moved = _without_empty(distances.argmin(1), distances.amin(1) * weights, clusters)
            if torch.equal(moved, member):
                break
            member = moved
        own = squared_distances(gram, weights, member, clusters)
        cost = float((weights * own[torch.arange(len(gram)), member]).sum())
        if cost < least:
            best, least = member, cost
    return best


def squared_distances(gram: Tensor, weights: Tensor, member: Tensor, clusters: int) -> Tensor:
    """Squared distances of every unit to the weighted mean of every cluster, [n, clusters]."""
    shares = weights / torch.zeros(clusters).to(weights).index_add_(0, member, weights)[member]
    products = torch.zeros(len(gram), clusters).to(gram).index_add_(1, member, gram * shares)
    lengths = torch.zeros(clusters).to(gram)
    lengths.index_add_(0, member, shares * products[torch.arange(len(gram)), member])
    return (gram.diagonal()[:, None] - 2 * products + lengths).clamp(min=0)


def _started(gram: Tensor, weights: Tensor, clusters: int, random: torch.Generator) -> Tensor:
    """The nearest of the centres, which are drawn by weight times squared distance to those before (K-means++)."""
    lengths = gram.diagonal()
    nearest, member = torch.full_like(lengths, torch.inf), torch.zeros(len(gram), dtype=torch.long)
    chances, left = weights.clone(), torch.ones(len(gram), dtype=torch.bool)
    for place in range(clusters):
        possible = torch.where(left, chances, 0.0)
        if not possible.any():  # only copies of centres are left
            possible = left.to(weights)
        centre = int(torch.multinomial(possible, 1, generator=random))
        left[centre] = False
        distance = (lengths - 2 * gram[centre] + lengths[centre]).clamp(min=0)
        closer = distance < nearest
        nearest, member = torch.where(closer, distance, nearest), torch.where(closer, place, member)
        member[centre] = place
        chances = weights * nearest
    return member


def _without_empty(member: Tensor, costs: Tensor, clusters: int) -> Tensor:
    """The same clusters, with the unit of largest cost that is not alone in each one that is empty."""
    counts = torch.bincount(member, minlength=clusters)
    for empty in (counts == 0).nonzero().flatten().tolist():
        movable = counts[member] > 1
        unit = int(torch.where(movable, costs, -1.0).argmax())
        counts[member[unit]] -= 1
        counts[empty] += 1
        member[unit], costs[unit] = empty, 0.0
    return member


def cluster_maps(member: Tensor, weights: Tensor, sizes: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """M_i [clusters, n_i], the weighted means of the clusters, and U_i [n_i, clusters], copies of each mean."""
    clusters = int(member.max()) + 1
    U = torch.nn.functional.one_hot(member, clusters).double()
    M = (U * weights.double()[:, None]).T
    return list(torch.split(M / M.sum(1, keepdim=True), sizes, 1)), list(torch.split(U, sizes, 0))
