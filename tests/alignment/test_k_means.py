from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from fsmerge_cli.alignment.k_means import cluster_maps, squared_distances, weighted_k_means


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Activations [n, 20] and positive weights."""
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 20, generator=random, dtype=torch.float64),
        torch.rand(n, generator=random, dtype=torch.float64) + 0.1,
    )


def cost(x: Tensor, weights: Tensor, member: Tensor) -> float:
    total = 0.0
    for cluster in member.unique():
        own = member == cluster
        centre = (weights[own, None] * x[own]).sum(0) / weights[own].sum()
        total += float((weights[own] * (x[own] - centre).square().sum(1)).sum())
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_all_partitions_of_few_units_is_found(seed: int) -> None:
    x, weights = points(6, seed)
    x[3:] = x[:3] + 0.7 * x[3:]  # so that the tries do not end in other optima
    found = weighted_k_means(x @ x.T, weights, 3, seed, tries=20)
    assert len(found.unique()) == 3
    partitions = (torch.tensor(own) for own in product(range(3), repeat=6) if len(set(own)) == 3)
    assert cost(x, weights, found) == pytest.approx(min(cost(x, weights, own) for own in partitions))


def test_every_unit_ends_at_its_nearest_centre() -> None:
    x, weights = points(30, 4)
    member = weighted_k_means(x @ x.T, weights, 8, 0)
    assert torch.equal(squared_distances(x @ x.T, weights, member, 8).argmin(1), member)


def test_distances_are_those_to_the_weighted_means() -> None:
    x, weights = points(7, 0)
    member = torch.tensor([0, 0, 1, 2, 1, 0, 2])
    found = squared_distances(x @ x.T, weights, member, 3)
    for c in range(3):
        own = member == c
        centre = (weights[own, None] * x[own]).sum(0) / weights[own].sum()
        torch.testing.assert_close(found[:, c], (x - centre).square().sum(1))


def test_copies_of_units_are_paired_and_all_clusters_have_a_unit() -> None:
    x, _ = points(9, 1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    both = torch.cat([x, x[order]])
    member = weighted_k_means(both @ both.T, torch.ones(18).double(), 9, 0)
    assert torch.equal(member[9:], member[:9][order])
    same = torch.ones(4, 20, dtype=torch.float64)  # nothing tells these apart
    assert sorted(weighted_k_means(same @ same.T, torch.ones(4).double(), 2, 0).unique().tolist()) == [0, 1]


def test_the_maps_average_by_weight_and_copy() -> None:
    member, weights = torch.tensor([0, 1, 1, 0]), torch.tensor([3.0, 1.0, 1.0, 1.0])
    M, U = cluster_maps(member, weights, [2, 2])
    assert [own.tolist() for own in M] == [[[0.75, 0.0], [0.0, 0.5]], [[0.0, 0.25], [0.5, 0.0]]]
    assert [own.tolist() for own in U] == [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]
