"""OT fusion: shuffled and widened copies merge to the function, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fsmerge_cli.alignment.space_maps import folded
from fsmerge_cli.common.errors import ConfigError, DataError, UserError
from fsmerge_cli.methods.activation_matching import ActivationMatching
from fsmerge_cli.methods.ot_fusion import OTFusion
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.training.problem import Problem
from tests.support.shuffled import assert_the_function_of_all, problem_of, shuffled, source_of
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source

FULL = pytest.mark.full


@pytest.mark.parametrize("cost", ["activations", "weights"])
@pytest.mark.parametrize(
    "kind",
    [
        "mlp",
        "class token",
        *(pytest.param(kind, marks=FULL) for kind in ("mlp, batch norm", "q/k norm", "LayerScale", "resnet")),
        pytest.param("packed SwiGLU (DINOv2 giant)", marks=FULL),
        pytest.param("rotary, registers (DINOv3)", marks=FULL),
    ],
)
def test_shuffled_copies_merge_to_the_function(kind: str, cost: Any) -> None:
    problem = shuffled(source_of(kind), 2)
    assert_the_function_of_all(problem, OTFusion(cost=cost, task_weights=(1.0, 2.0, 3.0)).fit(problem))


def widened(first: Source, wide: Source) -> Source:
    """`first` with every unit twice, in the shape of `wide`; scores of attention keep their size."""
    plan = compile_plan([wide, first])
    twice = {n: torch.eye(s.sources[1]).repeat_interleave(2, 0) for n, s in plan.spaces.items()}
    scores = {n for n in plan.spaces if n.startswith("qk")}
    merge = {n: [torch.zeros(len(T), len(T)), T * 0.5**0.25 if n in scores else T] for n, T in twice.items()}
    unmerge = {n: [torch.zeros(len(T), len(T)), T.T / 2] for n, T in twice.items()}
    both = Problem(plan, [wide, first], random_images(2, 1))
    return replace(wide, name="wide", weights=folded(both, merge, unmerge).weights)


@pytest.mark.parametrize("cost", ["activations", "weights"])
@pytest.mark.parametrize("kind", ["mlp", "class token", pytest.param("q/k norm", marks=FULL)])
@pytest.mark.parametrize("narrow", [True, False])
def test_a_widened_copy_merges_to_the_function(kind: str, cost: Any, narrow: bool) -> None:
    first = source_of(kind)
    if kind == "mlp":
        wide = mlp_source("wide", [24, 18, 20], 2, activation="tanh")
    else:
        wide = vit_source(kind, 2, embed_dim=24)
    pair = [first, widened(first, wide)]
    problem = problem_of(*(pair if narrow else pair[::-1]))
    assert_the_function_of_all(problem, OTFusion(cost=cost).fit(problem))


def test_the_exact_transport_of_one_unit_spaces_is_matching() -> None:
    """Where all correlations are 1 or 0, distances and correlations have the same best permutation."""
    problem = shuffled(source_of("mlp"), 1)
    one, two = OTFusion().fit(problem), ActivationMatching().fit(problem)
    for name, tensor in two.weights.items():
        torch.testing.assert_close(one.weights[name], tensor)


@pytest.mark.full
def test_a_soft_transport_is_a_mean_of_units_and_its_maps_fold_to_the_weights() -> None:
    problem = problem_of(source_of("class token", 1), source_of("class token", 2))
    solution = OTFusion(regularization=0.1).fit(problem)
    assert solution.maps is not None
    for port in problem.plan.writes:
        totals = sum(solution.maps.write(port, i).dense().sum(1) for i in range(2))
        torch.testing.assert_close(totals, torch.ones_like(totals))
    again = fold(problem.plan, solution.maps, problem.weights())
    assert all(torch.equal(again[n], t) for n, t in solution.weights.items())


def refused(problem: Problem, method: OTFusion) -> str:
    with pytest.raises(UserError) as error:
        method.fit(problem)
    assert isinstance(error.value, ConfigError | DataError)
    return str(error.value)


def test_a_merged_model_of_another_shape_is_refused() -> None:
    pair = [source_of("mlp", 1), source_of("mlp", 2)]
    problem = Problem(OTFusion(width=8).plan(pair), pair, random_images(2, 5))
    assert refused(problem, OTFusion(width=8)) == (
        "method=ot_fusion moves all units to those of source 1, whose widths and heads the merged model has. "
        "Leave method.width and method.heads at null, or take method=fs_merge or method=kd."
    )


def test_sizes_without_an_exact_transport_are_refused() -> None:
    pair = [mlp_source("a", [101], 1), mlp_source("b", [97], 2)]
    assert refused(problem_of(*pair), OTFusion()) == (
        "method=ot_fusion: the exact transport in 'h0' between the sizes 101 and 97 has 9,797 parts on each side, "
        "more than 8,192. Pass method.regularization=0.08 (Sinkhorn)."
    )
    assert OTFusion(regularization=0.1).fit(problem_of(*pair)).maps is not None


def test_only_the_cost_of_activations_needs_images() -> None:
    problem = problem_of(source_of("mlp", 1), source_of("mlp", 2))
    empty = replace(problem, images=replace(problem.images, images=torch.empty(0)))
    assert refused(empty, OTFusion()) == (
        "method=ot_fusion needs unlabelled images of the tasks. Pass data=... with data.images_per_task of 1 or "
        "more."
    )
    assert OTFusion(cost="weights").fit(empty).maps is not None
    assert (OTFusion().needs_images, OTFusion(cost="weights").needs_images) == (True, False)
