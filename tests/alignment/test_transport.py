"""Couplings: linear programming, all permutations, plain Sinkhorn steps, and weights that are written out."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from fsmerge_cli.alignment.transport import couplings, exact, sinkhorn, solver, unmerging, weight_distances
from fsmerge_cli.models.plan import compile_plan
from tests.support.sources import mlp_source
from tests.support.vits import vit_source


def cost(n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 6), (5, 2), (1, 4), (7, 5)])
def test_the_exact_coupling_is_the_optimum_of_the_linear_programme(n: int, m: int) -> None:
    given = cost(n, m)
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    best = linprog(given.flatten().numpy(), A_eq=sums, b_eq=[1 / n] * n + [1 / m] * m)
    found = exact(given)
    assert float((found * given).sum()) == pytest.approx(best.fun)
    torch.testing.assert_close(found.sum(1), torch.full((n,), 1 / n, dtype=torch.float64))
    torch.testing.assert_close(found.sum(0), torch.full((m,), 1 / m, dtype=torch.float64))


def test_with_equal_sizes_it_is_the_best_permutation() -> None:
    given = cost(5, 5, 3)
    best = min(permutations(range(5)), key=lambda p: sum(float(given[i, j]) for i, j in enumerate(p)))
    assert torch.equal(exact(given) * 5, torch.eye(5, dtype=torch.float64)[list(best)])


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 5)])
def test_sinkhorn_equals_the_scaling_of_the_kernel(n: int, m: int) -> None:
    given, weight = cost(n, m), 0.1
    kernel = (-given / weight).exp()
    v = torch.ones(m, dtype=torch.float64)
    for _ in range(3000):
        u = 1 / n / (kernel @ v)
        v = 1 / m / (kernel.T @ u)
    torch.testing.assert_close(sinkhorn(given, weight), u[:, None] * kernel * v, atol=1e-9, rtol=1e-6)


def test_little_entropy_is_nearly_exact_and_much_is_uniform() -> None:
    given = cost(6, 6)
    torch.testing.assert_close(sinkhorn(given, 1e-3), exact(given), atol=1e-4, rtol=0)
    torch.testing.assert_close(sinkhorn(given, 1e3), torch.full_like(given, 1 / 36), atol=1e-4, rtol=0)


def test_the_distances_are_those_of_all_weights_that_write_a_unit() -> None:
    pair = [mlp_source("a", [3, 4], 1), mlp_source("b", [5, 2], 2)]
    plan = compile_plan(pair)
    first, own = (source.weights for source in pair)
    U = unmerging(exact(cost(3, 5)))
    found = weight_distances(plan, "h1", first, own, {"h0": U})
    for i in range(4):
        for j in range(2):
            one = torch.cat([first["fc1.weight"][i], first["fc1.bias"][i : i + 1]]).double()
            two = torch.cat([own["fc1.weight"][j].double() @ U, own["fc1.bias"][j : j + 1].double()])
            assert float(found[i, j]) == pytest.approx(float((one - two).norm()))
    entry = weight_distances(plan, "h0", first, own, {})
    expected = torch.cdist(
        *(torch.cat([w["fc0.weight"], w["fc0.bias"][:, None]], 1).double() for w in (first, own))
    )
    torch.testing.assert_close(entry, expected)


@pytest.mark.parametrize("regularization", [0.0, 0.1])
def test_heads_stay_whole_and_queries_follow_values(regularization: float) -> None:
    plan = compile_plan([vit_source("class token", 1), vit_source("class token", 2)])
    costs = {name: cost(s.merged, s.sources[1], i) for i, (name, s) in enumerate(plan.spaces.items())}
    found = couplings(plan, costs, 1, solver(regularization))
    for block in range(2):
        heads = {name: found[f"{name}{block}"].reshape(3, 4, 3, 4).sum((1, 3)) for name in ("v", "qk")}
        assert (heads["v"] > 1e-12).sum(1).tolist() == [1, 1, 1]
        torch.testing.assert_close(heads["v"], heads["qk"])


def test_heads_of_other_numbers_share_their_mass() -> None:
    plan = compile_plan([vit_source("class token", 1), vit_source("class token", 2, num_heads=2)])
    costs = {name: cost(s.merged, s.sources[1], i) for i, (name, s) in enumerate(plan.spaces.items())}
    for T in couplings(plan, costs, 1, exact).values():
        torch.testing.assert_close(T.sum(1), torch.full((len(T),), 1 / len(T), dtype=T.dtype))
        torch.testing.assert_close(T.sum(0), torch.full((T.shape[1],), 1 / T.shape[1], dtype=T.dtype))
