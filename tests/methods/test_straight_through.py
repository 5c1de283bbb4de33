"""Straight-through permutations: the estimator's gradient, its projection, and what the training keeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch.func import functional_call

from fsmerge_cli import merge
from fsmerge_cli.alignment.matching import reorder_sources
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.alignment.weight_matching import match_weights
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods.activation_matching import ActivationMatching
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.straight_through import MidpointStudent, StraightThrough
from fsmerge_cli.methods.weight_matching import WeightMatching
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 16, "augment": "none", "mixup": 0.0}


def source(kind: str, seed: int) -> Source:
    return mlp_source(f"s{seed}", [12, 9], seed) if kind == "mlp" else vit_source("class token", seed)


def problem_of(*sources: Source, held: int = 4) -> Problem:
    found = list(sources)
    images = random_images(len(found), 12, found[0].arch.input_size, held=held)
    return Problem(compile_plan(found), found, images)


@pytest.mark.parametrize("kind", ["mlp", pytest.param("vit", marks=pytest.mark.full)])
@pytest.mark.parametrize("towards_first", [True, False])
def test_the_gradient_is_that_of_the_mean_of_the_permuted_sources(kind: str, towards_first: bool) -> None:
    problem = problem_of(*(source(kind, seed) for seed in (1, 2, 3)))
    shares, pixels = (0.5, 1.0, 1.5), problem.images.images
    student = MidpointStudent(problem, match_weights(problem), shares, towards_first)
    loss = student(pixels).square().mean()
    loss.backward()
    ordered = reorder_sources(problem, student.orders()).problem
    mean = {n: t.requires_grad_() for n, t in Average(task_weights=shares).fit(ordered).weights.items()}
    expected = functional_call(problem.plan.skeleton(), mean, (pixels,)).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in zip(mean, torch.autograd.grad(expected, list(mean.values()))):
        for i in (1, 2):
            found = student.matched(i)[name].grad
            torch.testing.assert_close(found, shares[i] / 3 * gradient, atol=1e-5, rtol=1e-3)


def test_the_projection_is_the_best_of_all_permutations() -> None:
    problem = problem_of(mlp_source("a", [5], 1), mlp_source("b", [5], 2))
    student = MidpointStudent(problem, match_weights(problem), (1.0, 1.0))
    own = problem.weights("cpu")[1]
    with torch.no_grad():
        for value in student.parameters():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(4)))
    student.project_weights()
    V = student.matched(1)

    def distance(order: torch.Tensor) -> float:
        permuted = permute(problem.plan, own, {"h0": order})
        return sum(float((V[n].detach() - permuted[n]).square().sum()) for n in V)

    best = min(map(torch.tensor, permutations(range(5))), key=distance)
    assert torch.equal(student.orders()[1]["h0"], best)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["mlp", "vit"])
def test_features_go_back_to_the_order_of_the_source(kind: str) -> None:
    first = source(kind, 1)
    order = random_permutations(
        compile_plan([first, replace(first, name="b")]), 0, torch.Generator().manual_seed(5)
    )
    plan = compile_plan([first, replace(first, name="b")])
    problem = problem_of(first, replace(first, name="copy", weights=permute(plan, first.weights, order)))
    solution = StraightThrough(**SHORT).fit(problem)
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    pixels = problem.images.images
    student = MidpointStudent(problem, solution.permutations, (1.0, 1.0))
    for i, (own, U) in enumerate(zip(problem.sources, solution.projectors)):
        expected = network(own)(pixels)
        torch.testing.assert_close(merged(pixels) @ U.T, expected, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(student.project(student(pixels), i), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("start", "method"), [("weights", WeightMatching), ("activations", ActivationMatching)])
def test_without_a_better_step_the_first_permutations_are_kept(start: Any, method: Any) -> None:
    """A rate that moves nothing leaves the permutations of the start."""
    problem = problem_of(source("mlp", 1), source("mlp", 2))
    found = StraightThrough(start=start, lr=1e-12, **SHORT).fit(problem)
    expected = method().fit(problem)
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(found.weights[name], tensor)
    assert found.trace.chosen_step == 0
    assert [step for step, _ in found.trace.validation] == [1, 2, 3, 4, 5, 6]


@pytest.mark.full
def test_the_best_permutations_on_the_validation_share_are_kept() -> None:
    problem = problem_of(mlp_source("a", [24, 16], 3), mlp_source("b", [24, 16], 4))
    start = StraightThrough(lr=1e-12, **SHORT).fit(problem).trace.validation[-1][1]
    found = StraightThrough(**{**SHORT, "steps": 40}).fit(problem)
    student = MidpointStudent(problem, found.permutations, (1.0, 1.0))
    matched = reorder_sources(problem, student.orders()).problem
    torch.testing.assert_close(dict(found.weights), dict(Average().fit(matched).weights))
    kept = [error for step, error in found.trace.validation if step == found.trace.chosen_step] or [start]
    assert kept[0] == min(start, *(error for _, error in found.trace.validation))


@pytest.mark.slow
def test_trained_networks_are_matched_better_than_by_their_weights() -> None:
    one = merge("digits_mlp_pair", method="weight_matching", output=None)
    two = merge("digits_mlp_pair", method={"name": "straight_through", "steps": 150}, output=None)
    assert two.scores["merged"].mean > one.scores["merged"].mean + 0.05


def test_other_widths_are_refused() -> None:
    pair = [mlp_source("a", [8, 6], 1), mlp_source("b", [8, 5], 2)]
    with pytest.raises(ConfigError) as error:
        StraightThrough().fit(problem_of(*pair))
    assert str(error.value) == (
        "method=straight_through needs sources with the width and number of heads of the merged model. Take "
        "method=fs_merge or method=kd, which do not."
    )
