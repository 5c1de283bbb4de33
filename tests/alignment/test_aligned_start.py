"""start=aligned: source 1, with least-squares fits from its activations to those of the other sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fsmerge_cli.alignment.matching import unmerging_start
from fsmerge_cli.alignment.statistics import unmerging
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.training.teachers import network
from tests.support.sources import PLAIN, folding, mlp_source

CPU = torch.device("cpu")
Make = Callable[..., Problem]


def test_least_squares_recover_the_maps_between_permuted_copies(make_problem: Make) -> None:
    """Source 2 is source 1 with its features permuted and scaled."""
    first = mlp_source("a", [8, 6], 0)
    mixing = torch.eye(6)[[2, 0, 1, 5, 3, 4]] * torch.arange(1.0, 7)  # commutes with ReLU
    weights = {n: t.clone() for n, t in first.weights.items()}
    weights["fc1.weight"], weights["fc1.bias"] = mixing @ weights["fc1.weight"], mixing @ weights["fc1.bias"]
    problem = make_problem([first, replace(first, name="b", weights=weights)], per_task=200)
    plan = problem.plan
    networks = [network(s) for s in problem.sources]
    found = unmerging(plan, networks, problem.images.images, 64, CPU, 1e-12)
    inside = [port for port in plan.reads if port != plan.features]
    for port in inside:  # both sources have the same hidden layer
        x = networks[0].get_submodule("fc0")(problem.images.images.flatten(1)).relu()
        torch.testing.assert_close(x @ found[port, 1].T, x, atol=1e-3, rtol=1e-3)
    z, expected = (own(problem.images.images) for own in networks)
    torch.testing.assert_close(z @ found[plan.features, 1].T, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("structure", ["full", "low_rank", "diagonal", "heads"])
def test_an_aligned_start_equals_source_1(make_problem: Make, structure: str) -> None:
    problem = make_problem()
    unmerge = unmerging_start(problem)
    weights = problem.weights()
    maps = start_maps(problem.plan, weights, structure, "aligned", 3, unmerge=unmerge)  # type: ignore[arg-type]
    folded = fold(problem.plan, maps, weights)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(folded[name], tensor)
    given, kept = unmerge[problem.plan.features, 1], maps.read(problem.plan.features, 1).dense()
    if structure == "full":
        torch.testing.assert_close(kept, given)
    elif structure == "diagonal":
        torch.testing.assert_close(kept, given.diagonal().diag())
    elif structure == "low_rank":
        rest = given - given.diagonal().diag()
        P, s, Qh = torch.linalg.svd(rest)
        best = given.diagonal().diag() + P[:, :3] * s[:3] @ Qh[:3]
        torch.testing.assert_close(kept, best, atol=1e-5, rtol=1e-4)
    else:  # spaces without heads get low-rank maps
        low_rank = start_maps(problem.plan, weights, "low_rank", "aligned", 3, unmerge=unmerge)
        torch.testing.assert_close(kept, low_rank.read(problem.plan.features, 1).dense())


@pytest.mark.parametrize("kind", [FSMerge, Distillation])
def test_an_aligned_start_lowers_the_initial_error(make_problem: Make, kind: Any) -> None:
    method = kind(**{**PLAIN, "steps": 1, "lr": 1e-12, "start": "aligned"})
    problem = make_problem(per_task=60)
    plain = replace(method, start="first").fit(problem).trace.start_error
    aligned = method.fit(problem).trace.start_error
    assert aligned[0] == pytest.approx(plain[0], abs=1e-9)
    assert aligned[1] < 0.5 * plain[1]


def test_with_another_width_an_aligned_start_equals_first(make_problem: Make) -> None:
    sources = [mlp_source(n, [8, 6], i) for i, n in enumerate("ab")]
    problem = replace(make_problem(sources), plan=compile_plan(sources, (8, 4)))
    one, two = (folding(steps=2, start=start, width=(8, 4)).fit(problem) for start in ("aligned", "first"))
    assert all(torch.equal(one.weights[n], two.weights[n]) for n in one.weights)
