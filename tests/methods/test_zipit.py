from __future__ import annotations

import pytest
import torch

from fsmerge_cli.alignment.zipping import zip_units
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.zipit import ZipIt
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.supernet.fold import fold
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source


def zip_reference(S: torch.Tensor, k: int, a: float, b: float) -> list[set[int]]:
    """The algorithm as stated in the paper, with sets and without bookkeeping."""
    total = len(S)
    n = total // k
    budget = [int((total - n) / k * b)] * k
    similar = {(i, j): float(S[i, j]) for i in range(total) for j in range(total) if i < j}
    clusters = {i: {i} for i in range(total)}

    spent = [x == 0 for x in budget]
    for pair in list(similar):
        if pair[0] // n == pair[1] // n and spent[pair[0] // n]:
            similar[pair] = -float("inf")
    while len(clusters) > n:
        if max(similar.values()) == -float("inf"):  # all pairs left are within a source: ignore the budgets
            similar = {pair: float(S[pair]) for pair in similar}
        p, q = max(similar, key=lambda pair: (similar[pair], -pair[0], -pair[1]))
        clusters[p] |= clusters.pop(q)
        for x in clusters:
            if x != p:
                left, right = similar[min(p, x), max(p, x)], similar[min(q, x), max(q, x)]
                low = min(left, right)
                similar[min(p, x), max(p, x)] = low if low == -float("inf") else low * a
        similar = {pair: value for pair, value in similar.items() if q not in pair}
        if p // n == q // n:
            budget[p // n] -= 1
            if budget[p // n] == 0:
                for pair in similar:
                    if pair[0] // n == pair[1] // n == p // n:
                        similar[pair] = -float("inf")
    return list(clusters.values())


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("a", [0.3, 1.0])
@pytest.mark.parametrize("b", [0.25, 0.5, 1.0])
def test_fast_clustering_equals_the_reference(k: int, a: float, b: float) -> None:
    for seed in range(5):
        x = torch.randn(50, 8 * k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        S = torch.corrcoef(x.T)
        _, unmerge = zip_units(S, k, a, b)
        P = torch.cat(unmerge)
        found = {frozenset(P[:, c].nonzero().flatten().tolist()) for c in range(8)}
        assert found == {frozenset(c) for c in zip_reference(S, k, a, b)}


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("b", [0.0, 0.25])
def test_maps_average_clusters_and_copy_the_mean(k: int, b: float) -> None:
    for seed in range(10):
        x = torch.randn(50, 6 * k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        merge, unmerge = zip_units(torch.corrcoef(x.T), k, 0.3, b)
        M, U = torch.cat(merge, 1), torch.cat(unmerge, 0)
        assert M.shape == (6, 6 * k)
        assert torch.equal(U.sum(1), torch.ones(6 * k, dtype=torch.float64))
        torch.testing.assert_close(M @ U, torch.eye(6, dtype=torch.float64))
        if k == 2 and b == 0.0:
            assert torch.equal(merge[0].count_nonzero(1), torch.ones(6, dtype=torch.long))


def test_heads_are_never_mixed() -> None:
    pair = [vit_source("class token", 1), vit_source("class token", 2)]
    problem = Problem(compile_plan(pair), pair, random_images(2, 30, (2, 8, 8)))
    maps = ZipIt(b=0.5).fit(problem).maps
    assert maps is not None
    orders = {}
    for port in problem.plan.writes:
        if port.space.startswith(("qk", "v")):
            for i in range(2):
                parts = maps.write(port, i).dense().reshape(3, 4, 3, 4).abs().sum((1, 3))
                assert (parts > 0).sum(1).tolist() == [1, 1, 1]
                orders.setdefault((port.space.lstrip("qkv"), i), []).append((parts > 0).tolist())
    assert all(order == found[0] for found in orders.values() for order in found)


def test_running_statistics_are_reestimated() -> None:
    pair = [mlp_source(n, [8, 6], i, norm="batch") for i, n in enumerate("ab")]
    problem = Problem(compile_plan(pair), pair, random_images(2, 30))
    solution = ZipIt().fit(problem)
    weights = solution.weights
    assert solution.maps is not None
    again = fold(problem.plan, solution.maps, problem.weights())
    assert all(torch.equal(again[n], weights[n]) for n in weights if "num_batches" not in n)
    first = problem.images.images.flatten(1) @ weights["fc0.weight"].T + weights["fc0.bias"]
    torch.testing.assert_close(weights["norm0.running_mean"], first.mean(0))
    torch.testing.assert_close(weights["norm0.running_var"], first.var(0))


def test_without_alignment_heads_with_the_same_index_are_merged() -> None:
    pair = [vit_source("class token", 1), vit_source("class token", 2)]
    problem = Problem(compile_plan(pair), pair, random_images(2, 30, (2, 8, 8)))
    maps = ZipIt(align="none").fit(problem).maps
    assert maps is not None
    for port in problem.plan.writes:
        if port.space.startswith(("qk", "v")):
            for i in range(2):
                parts = maps.write(port, i).dense().reshape(3, 4, 3, 4).abs().sum((1, 3))
                assert torch.equal(parts > 0, torch.eye(3, dtype=torch.bool))
