"""Matching recovers the permutation of a permuted copy, and so does every method that aligns the sources."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fsmerge_cli.alignment.matching import back_to_sources, match_all, similarities
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source, random_images
from tests.support.vits import VARIANTS, mark_full, vit_source

pytestmark = pytest.mark.full

SHUFFLED_VITS = [
    "class token",
    "pre-norm (CLIP)",
    "q/k norm",
    "packed SwiGLU (DINOv2 giant)",
    "LayerScale",
    "average pooling, fc_norm",
    "register tokens",
]


def shuffled(source: Source, copies: int = 1) -> tuple[Problem, list[dict[str, torch.Tensor]]]:
    """A problem with a source and copies of it with shuffled units, and the permutations of the copies."""
    plan = compile_plan([source, replace(source, name="copy")])
    orders = [random_permutations(plan, 0, torch.Generator().manual_seed(7 + i)) for i in range(copies)]
    shuffled_copies = [
        replace(source, name=f"copy{i}", weights=permute(plan, source.weights, order))
        for i, order in enumerate(orders)
    ]
    sources = [source, *shuffled_copies]
    images = random_images(len(sources), 60, source.arch.input_size)
    return Problem(compile_plan(sources), sources, images), orders


def sources() -> dict[str, Source]:
    return {
        "mlp": mlp_source("a", [12, 9, 10], 1, activation="tanh"),
        "mlp, batch norm": mlp_source("a", [12, 9], 1, norm="batch", activation="tanh"),
        **{name: vit_source(name, 1) for name in SHUFFLED_VITS},
    }


@pytest.mark.parametrize("case", mark_full(sources()))
def test_matching_recovers_the_permutation_heads_included(case: str) -> None:
    problem, (order,) = shuffled(sources()[case])
    found = match_all(problem.plan, similarities(problem), 2)[1]
    for space, p in order.items():
        # unit order[j] of the source became unit j of the copy, so source unit j is copy unit inverse[j]
        assert torch.equal(found[space], p.argsort()), space


@pytest.mark.parametrize("method", ["activation_matching", "regmean", "regmean_pp", "zipit", "slerp"])
@pytest.mark.parametrize("case", mark_full(sources()))
def test_merging_shuffled_copies_returns_the_function(case: str, method: str) -> None:
    problem, _ = shuffled(sources()[case], copies=2)
    options = {"zipit": {"a": 1.0, "b": 0.0}, "slerp": {"align": "activations"}}.get(method, {})
    solution = METHODS[method](**options).fit(problem)
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    pixels = problem.images.images
    norm = "batch" in case and method == "zipit"  # statistics are re-estimated on only these images
    for source, U in zip(problem.sources, solution.projectors):
        expected = network(source)(pixels)
        if norm:
            continue
        torch.testing.assert_close(merged(pixels) @ U.T, expected, rtol=2e-3, atol=2e-3)


def test_back_to_sources_undoes_the_permutation_of_the_features() -> None:
    problem, (order,) = shuffled(sources()["mlp"])
    pixels = problem.images.images
    first, copy = (network(s)(pixels) for s in problem.sources)
    (identity, back) = back_to_sources(problem, match_all(problem.plan, similarities(problem), 2))
    assert torch.equal(identity, torch.eye(10))
    torch.testing.assert_close(first @ back.T, copy)
    torch.testing.assert_close(first[:, order["h2"]], copy)


def test_matching_two_different_networks_keeps_heads_whole() -> None:
    pair = [vit_source("class token", 1), vit_source("class token", 2)]
    problem = Problem(compile_plan(pair), pair, random_images(2, 30, (2, 8, 8)))
    found = match_all(problem.plan, similarities(problem), 2)[1]
    for name, p in found.items():
        assert sorted(p.tolist()) == list(range(problem.plan.spaces[name].merged))
    for i in range(2):
        order = found[f"v{i}"].reshape(3, 4) // 4
        assert (order == order[:, :1]).all()
        assert torch.equal(order, found[f"qk{i}"].reshape(3, 4) // 4)


@pytest.mark.parametrize("name", ["activation_matching", "regmean", "regmean_pp", "zipit", "slerp"])
def test_other_widths_are_refused(name: str) -> None:
    pair = [mlp_source("a", [8, 6], 1), mlp_source("b", [8, 5], 2)]
    with pytest.raises(ConfigError) as error:
        METHODS[name]().fit(Problem(compile_plan(pair), pair, random_images(2, 5)))
    assert str(error.value) == (
        f"method={name} needs sources with the width and number of heads of the merged model. "
        "Take method=fs_merge or method=kd, which do not."
    )


def test_other_heads_are_refused() -> None:
    pair = [vit_source("class token", 1), vit_source("class token", 2, num_heads=4)]
    with pytest.raises(ConfigError):
        METHODS["activation_matching"]().fit(Problem(compile_plan(pair), pair, random_images(2, 5, (2, 8, 8))))


@pytest.mark.parametrize("name", ["activation_matching", "regmean", "regmean_pp", "zipit"])
def test_missing_images_are_reported(name: str) -> None:
    pair = [mlp_source("a", [8], 1), mlp_source("b", [8], 2)]
    images = replace(random_images(2, 5), images=torch.empty(0))
    with pytest.raises(DataError) as error:
        METHODS[name]().fit(Problem(compile_plan(pair), pair, images))
    assert str(error.value) == (
        f"method={name} needs unlabelled images of the tasks. "
        "Pass data=... with data.images_per_task of 1 or more."
    )


def test_every_shuffled_variant_exists() -> None:
    assert set(SHUFFLED_VITS) <= set(VARIANTS)
