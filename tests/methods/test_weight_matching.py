"""Weight matching: brute force on tiny networks, shuffled copies, and no loss of the objective."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import pytest
import torch

from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.alignment.weight_matching import descend, inner_product, match_weights, similarity_of
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network
from tests.support.resnets import resnet_source
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source


def problem_of(*sources: Source) -> Problem:
    found = list(sources)
    return Problem(compile_plan(found), found, random_images(len(found), 5, found[0].arch.input_size))


def test_the_best_of_all_permutations_is_found() -> None:
    problem = problem_of(mlp_source("a", [3, 4], 1), mlp_source("b", [3, 4], 2))
    first, own = problem.weights("cpu")
    every = product(permutations(range(3)), permutations(range(4)))
    names = sorted(problem.plan.spaces, key=lambda name: problem.plan.spaces[name].merged)
    orders = [dict(zip(names, map(torch.tensor, pair))) for pair in every]
    best = max(inner_product(problem.plan, first, permute(problem.plan, own, order)) for order in orders)
    found = match_weights(problem, restarts=8)[1]
    assert inner_product(problem.plan, first, permute(problem.plan, own, found)) == pytest.approx(best)


@pytest.mark.parametrize("kind", ["mlp", pytest.param("vit", marks=pytest.mark.full), "resnet"])
def test_the_similarity_is_the_change_of_the_inner_product(kind: str) -> None:
    """The sum of S over an order is the part of the inner product that this space decides."""
    problem = problem_of(*(source(kind, seed) for seed in (1, 2)))
    plan, (first, own) = problem.plan, problem.weights("cpu")
    order = random_permutations(plan, 1, torch.Generator().manual_seed(3))
    for name in plan.spaces:
        if plan.spaces[name].heads is not None:
            continue
        similarity = similarity_of(plan, name, first, own, order)
        rows = torch.arange(len(order[name]))
        changed = order | {name: order[name].flip(0)}
        before, after = (inner_product(plan, first, permute(plan, own, found)) for found in (order, changed))
        expected = float(similarity[rows, changed[name]].sum() - similarity[rows, order[name]].sum())
        fixed = unmoved(problem, name, order, changed)
        assert after - before == pytest.approx(expected + fixed, rel=1e-3, abs=1e-3)


def unmoved(problem: Problem, space: str, one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """What running statistics, which are not matched, contribute to the change."""
    plan, (first, own) = problem.plan, problem.weights("cpu")
    names = [n for n, role in plan.roles.items() if getattr(role, "trainable", True) is False]
    a, b = (permute(plan, own, order) for order in (one, two))
    return sum(float((first[n] * (b[n] - a[n])).sum()) for n in names)


def source(kind: str, seed: int) -> Source:
    if kind == "mlp":
        return mlp_source(f"s{seed}", [12, 9, 10], seed, activation="tanh")
    return vit_source("class token", seed) if kind == "vit" else resnet_source("bottleneck", seed)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["mlp", "vit", "resnet"])
@pytest.mark.parametrize("copies", [1, 2])
def test_shuffled_copies_merge_to_the_function(kind: str, copies: int) -> None:
    first = source(kind, 1)
    plan = compile_plan([first, replace(first, name="copy")])
    orders = [random_permutations(plan, 0, torch.Generator().manual_seed(7 + i)) for i in range(copies)]
    others = [replace(first, name=f"c{i}", weights=permute(plan, first.weights, p)) for i, p in enumerate(orders)]
    problem = problem_of(first, *others)
    solution = METHODS["weight_matching"](restarts=5).fit(replace(problem, images=replace(problem.images)))
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    pixels = problem.images.images
    for own, U in zip(problem.sources, solution.projectors):
        torch.testing.assert_close(merged(pixels) @ U.T, network(own)(pixels), rtol=2e-3, atol=2e-3)


def test_no_start_gets_worse() -> None:
    problem = problem_of(source("vit", 1), source("vit", 2))
    plan, (first, own) = problem.plan, problem.weights("cpu")
    start = random_permutations(plan, 1, torch.Generator().manual_seed(5))
    found = descend(plan, first, own, start, torch.Generator().manual_seed(0))
    before, after = (inner_product(plan, first, permute(plan, own, order)) for order in (start, found))
    assert after > before
