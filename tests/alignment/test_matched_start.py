"""start=matched: the mean of the sources, with units reordered to match source 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fsmerge_cli import merge
from fsmerge_cli.alignment import matching
from fsmerge_cli.alignment.matching import match_all, reordered, similarities
from fsmerge_cli.alignment.permutation import random_permutations
from fsmerge_cli.alignment.statistics import correlations, places
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.evaluation.certificates import Certifier, _heads, _permuted, _unfolded
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold_head
from fsmerge_cli.training.problem import Solution
from fsmerge_cli.training.snapshots import SaveInterval, Snapshots
from fsmerge_cli.training.teachers import network
from tests.support.sources import distilling, folding, mlp_source, random_images
from tests.support.vits import vit_source

pytestmark = pytest.mark.full

SOURCES = {
    "mlp, batch norm": lambda name, seed: mlp_source(name, [12, 9], seed, norm="batch", activation="tanh"),
    "class token": lambda name, seed: vit_source("class token", seed),
    "q/k norm": lambda name, seed: vit_source("q/k norm", seed),
}

UNMOVED: dict[str, Any] = {"steps": 2, "lr": 1e-12, "start": "matched"}


def headed(source: Source, projected: bool = False) -> Source:
    """The source with a head. projected: with a head that has its own projector."""
    random, size = torch.Generator().manual_seed(3), source.arch.features
    weight, projector = torch.randn(4, size, generator=random), torch.randn(size, size, generator=random)
    return replace(
        source, head=Head(weight, None, ("a", "b", "c", "d"), projected, True, projector if projected else None)
    )


def twins(case: str, copies: int = 1) -> Problem:
    """A source and permuted copies of it."""
    source = headed(SOURCES[case]("a", 1))
    plan = compile_plan([source, replace(source, name="twin")])
    orders = [random_permutations(plan, 0, torch.Generator().manual_seed(7 + i)) for i in range(copies)]
    shuffled = [replace(reordered(plan, source, order), name=f"copy{i}") for i, order in enumerate(orders)]
    sources = [source, *shuffled]
    return Problem(compile_plan(sources), sources, random_images(len(sources), 60, source.arch.input_size))


def pair(case: str) -> Problem:
    sources = [replace(headed(SOURCES[case](name, seed)), name=name) for name, seed in (("a", 1), ("b", 2))]
    return Problem(compile_plan(sources), sources, random_images(2, 40, sources[0].arch.input_size))


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("case", SOURCES)
def test_a_reordered_source_has_the_same_logits(case: str, projected: bool) -> None:
    source = headed(SOURCES[case]("a", 1), projected)
    plan = compile_plan([source, replace(source, name="twin")])
    order = random_permutations(plan, 0, torch.Generator().manual_seed(5))
    other, pixels = reordered(plan, source, order), random_images(1, 9, source.arch.input_size).images
    z, permuted = network(source)(pixels), network(other)(pixels)
    assert not torch.allclose(z, permuted, atol=1e-2)
    assert source.head is not None
    assert other.head is not None
    torch.testing.assert_close(other.head(permuted), source.head(z), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "method", [folding(**UNMOVED), folding(**UNMOVED, maps="low_rank", rank=2), distilling(**UNMOVED)]
)
@pytest.mark.parametrize("case", SOURCES)
def test_permuted_copies_start_without_an_error(case: str, method: Any) -> None:
    problem = twins(case, copies=2)
    solution = method.fit(problem)
    assert max(solution.trace.start_error) < 1e-6
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    for source, U in zip(problem.sources, solution.projectors):
        expected = network(source)(problem.images.images)
        torch.testing.assert_close(merged(problem.images.images) @ U.T, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("case", SOURCES)
def test_the_start_equals_the_result_of_activation_matching(case: str) -> None:
    problem = pair(case)
    expected = METHODS["activation_matching"]().fit(problem)
    for method in (folding(**UNMOVED), distilling(**UNMOVED)):
        found = method.fit(problem)
        for name, tensor in expected.weights.items():
            torch.testing.assert_close(found.weights[name], tensor, atol=1e-6, rtol=1e-5)
        for own, other in zip(found.projectors, expected.projectors):
            torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5)
        assert [{n: p.tolist() for n, p in orders.items()} for orders in found.permutations] == [
            {n: p.tolist() for n, p in orders.items()} for orders in expected.permutations
        ]


def certifier_of(problem: Problem, solution: Solution) -> tuple[Certifier, Tensor, dict[str, Tensor]]:
    """The inputs of certificates, with the merged features in fp64 and the written heads."""
    heads = {s.name: fold_head(s.head, U) for s, U in zip(problem.sources, solution.projectors) if s.head}
    certifier = Certifier(problem.plan, problem.sources, solution, heads, problem.images.images[:6])
    merged = problem.plan.skeleton().double()
    merged.load_state_dict({n: t.double() for n, t in solution.weights.items()}, assign=True)
    tensors = {f"{name}.weight": head.weight for name, head in heads.items()}
    return certifier, merged.eval()(certifier.pixels.double()), tensors


@torch.no_grad()
@pytest.mark.parametrize("finetune_share", [0.0, 0.5])
def test_the_certificates_use_the_reordered_sources(finetune_share: float) -> None:
    problem = pair("class token")
    with torch.enable_grad():
        solution = folding(steps=4, start="matched", finetune_share=finetune_share).fit(problem)
    certifier, features, heads = certifier_of(problem, solution)
    found = [_unfolded(certifier, features), _heads(certifier, heads, features), _permuted(certifier)]
    assert [c.error is not None and c.holds for c in found] == [True, True, True]
    (stage,) = solution.stages
    assert all(own[n] is s.weights[n] for own, s in zip(stage.sources, problem.sources) for n in own)
    shifted = tuple({n: p.roll(1) for n, p in own.items()} for own in stage.permutations)
    wrong = replace(solution, stages=(replace(stage, permutations=shifted),))
    assert not _unfolded(replace(certifier, solution=wrong), features).holds
    upside_down = replace(solution, projectors=(solution.projectors[0], solution.projectors[1].flip(0)))
    assert _unfolded(replace(certifier, solution=upside_down), features).holds == (
        finetune_share > 0
    )  # fine-tuned after the fold


@torch.no_grad()
def test_every_reordering_of_a_sequential_merge_is_certified() -> None:
    problem = twins("mlp, batch norm", copies=2)
    with torch.enable_grad():
        solution = folding(steps=2, start="matched", sequential=True).fit(problem)
    certifier = certifier_of(problem, solution)[0]
    assert _permuted(certifier).error is not None
    assert _permuted(certifier).holds
    first, *others = solution.stages
    broken = [{**weights, "fc0.weight": weights["fc0.weight"] * torch.nan} for weights in first.sources]
    wrong = replace(solution, stages=(replace(first, sources=broken), *others))
    assert not _permuted(replace(certifier, solution=wrong)).holds


@pytest.mark.parametrize("make", [folding, distilling])
def test_with_different_shapes_a_matched_start_equals_an_aligned_one(make: Any) -> None:
    sources = [mlp_source("a", [8, 6], 1), mlp_source("b", [8, 5], 2)]
    problem = Problem(compile_plan(sources), sources, random_images(2, 12))
    one, two = (make(steps=2, start=start).fit(problem) for start in ("matched", "aligned"))
    assert all(torch.equal(one.weights[n], two.weights[n]) for n in one.weights)
    assert one.permutations == ()


@pytest.mark.parametrize("method", [folding(steps=3, start="matched"), distilling(steps=3, start="matched")])
def test_a_resumed_training_keeps_its_permutations(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = pair("mlp, batch norm")

    def fitted() -> tuple[Solution, Snapshots]:
        snapshots = Snapshots(tmp_path / "state", every=SaveInterval(steps=1))
        return method.fit(replace(problem, snapshots=snapshots)), snapshots

    before, _ = fitted()
    other = [{n: p.flip(0) for n, p in own.items()} for own in before.permutations]
    monkeypatch.setattr(matching, "match_to_first", lambda problem: other)
    after, snapshots = fitted()
    assert snapshots.resumed
    for name, tensor in before.weights.items():
        assert torch.equal(after.weights[name], tensor)
    assert all(torch.equal(a, b) for a, b in zip(after.projectors, before.projectors))
    restarted = method.fit(problem)
    assert not torch.equal(restarted.weights["fc0.weight"], before.weights["fc0.weight"])


def test_a_sequential_merge_from_matched_starts() -> None:
    problem = twins("mlp, batch norm", copies=2)
    solution = folding(**UNMOVED, sequential=True).fit(problem)
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    assert len(solution.stages) == 2
    for source, U in zip(problem.sources, solution.projectors):
        expected = network(source)(problem.images.images)
        torch.testing.assert_close(merged.eval()(problem.images.images) @ U.T, expected, atol=1e-3, rtol=1e-3)


def test_it_is_the_default_of_distillation() -> None:
    """Of fs_merge where there is no closed form, see tests/methods/test_default_start.py."""
    assert Distillation().start == "matched"


def test_an_unknown_start_is_reported_with_the_choices() -> None:
    with pytest.raises(ConfigError) as error:
        merge("digits_mlp_pair", method={"name": "fs_merge", "start": "mached"})
    assert str(error.value) == (
        "method.start: should be 'matched', 'weight_matching', 'straight_through', 'ot_fusion', 'cca', "
        "'orthogonal_matching', 'closed_form', 'average', 'first' or 'aligned', got 'mached'."
    )


@pytest.mark.parametrize("max_bytes", [1, 2**30, None])
def test_correlations_with_source_1_are_rows_of_all_correlations(max_bytes: int | None) -> None:
    problem = pair("class token")
    whole, networks = similarities(problem), [network(source) for source in problem.sources]
    events: list[tuple[int, int]] = []
    some = correlations(
        problem.plan,
        networks,
        problem.images.images,
        16,
        torch.device("cpu"),
        lambda event: events.append((event.done, event.total)),
        first=True,
        max_bytes=max_bytes,
    )
    for name, space in problem.plan.spaces.items():
        assert some[name].shape == (space.sources[0], sum(space.sources))
        torch.testing.assert_close(some[name], whole[name][: space.sources[0]])
    passes = len(places(problem.plan)) if max_bytes == 1 else 1
    assert events[-1] == (passes * 80, passes * 80)
    assert [done for done, _ in events] == sorted(done for done, _ in events)


def test_the_permutations_equal_those_from_all_correlations() -> None:
    problem = pair("class token")
    for own, other in zip(matching.match_to_first(problem), match_all(problem.plan, similarities(problem), 2)):
        assert all(torch.equal(own[name], other[name]) for name in problem.plan.spaces)
