"""PLeaS: partial merging under a budget of operations, then least squares of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fsmerge_cli.alignment import widening as widening_module
from fsmerge_cli.alignment.matching import match_all, similarities
from fsmerge_cli.alignment.partial import gains, mismatches, partial_maps, partial_merge, worst
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.alignment.widening import widening
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods.pleas import PLeaS
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import maps_of_spaces
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network
from tests.support.resnets import resnet_source
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

DEEP = "deep stem, average pooling on the shortcut"
MAKE: dict[str, Any] = {
    "MLP": lambda seed: mlp_source("a", (9, 7), seed),
    "ViT": lambda seed: vit_source("class token", seed),
    "ViT with q/k norm": lambda seed: vit_source("q/k norm", seed),
    "ResNet": lambda seed: resnet_source(DEEP, seed),
    "ResNet of bottlenecks": lambda seed: resnet_source("bottleneck", seed),
}
QUICK = {"MLP", "ViT", "ResNet"}
KINDS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MAKE]


def problem_of(sources: Sequence[Source], count: int, plan: Plan | None = None) -> Problem:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(count, *sources[0].arch.input_size, generator=random)
    every = torch.arange(count)
    drawn = Images(images, every % len(sources), every, every[:0])
    return Problem(plan or compile_plan(sources), sources, drawn)


def features(problem: Problem, solution: Solution) -> list[Tensor]:
    module = problem.plan.skeleton()
    module.load_state_dict(dict(solution.weights), assign=True)
    with torch.no_grad():
        z = module.eval()(problem.images.images)
        return [z @ U.T for U in solution.projectors]


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_permuted_copies_of_a_source_are_that_source(kind: str) -> None:
    source = MAKE[kind](1)
    plan = compile_plan([source, replace(source, name="b")])
    orders = random_permutations(plan, 1, torch.Generator().manual_seed(3))
    copy = replace(source, name="copy", weights=permute(plan, source.weights, orders))
    problem = problem_of([source, copy], 40)
    found = features(problem, PLeaS().fit(problem))
    for mine, own in zip(found, problem.sources):
        with torch.no_grad():
            expected = network(own)(problem.images.images)
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_with_all_units_separate_both_sources_lie_side_by_side() -> None:
    sources = [mlp_source(name, (5, 4), seed) for seed, name in ((1, "a"), (2, "b"))]
    problem = problem_of(sources, 60, compile_plan(sources, (10, 8)))
    solution = PLeaS(ridge=1e-9).fit(problem)
    for mine, own in zip(features(problem, solution), sources):
        with torch.no_grad():
            torch.testing.assert_close(mine, network(own)(problem.images.images), rtol=1e-4, atol=1e-4)
    assert solution.facts["separate_units"] == 9


def test_layers_are_fitted_by_least_squares_to_the_mean_of_matched_units() -> None:
    sources = [mlp_source(name, (4, 3), seed) for seed, name in ((1, "a"), (2, "b"))]
    problem = problem_of(sources, 50, compile_plan(sources, (5, 4)))
    base = compile_plan(sources)
    similar = similarities(replace(problem, plan=base), first=True)
    orders = match_all(base, similar, 2)
    merge = {name: pair[0] for name, pair in partial_merge(base, problem.plan, similar, orders).items()}
    pixels = problem.images.images.flatten(1)
    hidden = [torch.relu(pixels @ s.weights["fc0.weight"].T + s.weights["fc0.bias"]) for s in sources]
    outputs = [h @ s.weights["fc1.weight"].T + s.weights["fc1.bias"] for h, s in zip(hidden, sources)]
    x, y = (
        sum((v.double() @ M.T for v, M in zip(values, merge[name])), torch.zeros(()))
        for name, values in (("h0", hidden), ("h1", outputs))
    )
    rows = torch.cat([x, torch.ones(50, 1)], 1)
    expected = rows @ torch.linalg.lstsq(rows, y, driver="gelsd").solution
    found = PLeaS(ridge=0.0).fit(problem).weights
    assert merge["h0"][0].shape == (5, 4)
    fitted = x @ found["fc1.weight"].double().T + found["fc1.bias"]
    torch.testing.assert_close(fitted, expected, rtol=1e-4, atol=1e-4)
    assert float((fitted - y).square().mean()) > 1e-4  # no exact solution, which the starting point could be


def test_convolutions_are_fitted_to_patches() -> None:
    sources = [resnet_source(DEEP, seed) for seed in (1, 2)]
    problem = problem_of(sources, 30)
    similar = similarities(problem, first=True)
    orders = match_all(problem.plan, similar, 2)
    merge = {n: p[0] for n, p in partial_merge(problem.plan, problem.plan, similar, orders).items()}
    name, read, write = "layer1.0.conv1", "stem", "h1_0_1"
    x = y = torch.zeros(())
    for i, source in enumerate(sources):
        net: Any = network(source)
        seen: list[Tensor] = []
        net.get_submodule(name).register_forward_pre_hook(lambda m, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            net(problem.images.images)
            out = net.get_submodule(name)(seen[0]).double()
        x = x + torch.einsum("nchw,dc->ndhw", seen[0].double(), merge[read][i])
        y = y + torch.einsum("nchw,dc->ndhw", out, merge[write][i])
    patches = torch.nn.functional.unfold(x, 3, padding=1).mT.flatten(0, 1)
    rows = torch.cat([patches, torch.ones(len(patches), 1)], 1)
    expected = torch.linalg.lstsq(rows, y.flatten(2).mT.flatten(0, 1)).solution
    found = PLeaS(ridge=0.0, reset_batchnorm=False).fit(problem).weights[f"{name}.weight"]
    torch.testing.assert_close(found.double().flatten(1), expected[:-1].T, rtol=1e-3, atol=1e-3)


def test_the_members_that_match_worst_are_separate_and_the_others_averaged() -> None:
    similar = torch.tensor([[1.0, 0.0, 0.9, 0.2, 0.1, 0.3], [0.0, 1.0, 0.3, 0.4, 0.8, 0.2]])
    orders = [torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 0])]
    found = mismatches(similar, orders)
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.6], [0.7, 0.2]]).double())
    assert worst(found, 2) == [(2, 0), (1, 1)]
    merge, unmerge = partial_maps(orders, worst(found, 2))
    h = 0.5
    assert [M.tolist() for M in merge] == [
        [[h, 0], [0, h], [0, 0], [0, 0]],
        [[h, 0], [0, 0], [0, 0], [0, 1]],
        [[0, 0], [h, 0], [0, 1], [0, 0]],
    ]
    assert [U.tolist() for U in unmerge] == [
        [[1, 0, 0, 0], [0, 1, 0, 0]],
        [[1, 0, 0, 0], [0, 0, 0, 1]],
        [[0, 1, 0, 0], [0, 0, 1, 0]],
    ]
    torch.testing.assert_close(gains(found), torch.tensor([0, 0.7, 1.3, 1.5, 1.6]).double() / 1.6)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["ViT", "ResNet"])
def test_partial_maps_of_identical_sources_keep_the_function_of_every_layer(kind: str) -> None:
    """Separate members of equal sources read and write what the merged ones do."""
    source = MAKE[kind](1)
    sources = [source, replace(source, name="b")]
    plan = PLeaS(budget_flops=2.0).plan(sources)
    base = compile_plan(sources)
    assert plan.arch.features > base.arch.features or plan.spaces != base.spaces
    similar = similarities(problem_of(sources, 8), first=True)
    maps = partial_merge(base, plan, similar, match_all(base, similar, 2))
    for name, (merge, unmerge) in maps.items():
        size = base.spaces[name].merged
        for M, U in zip(merge, unmerge):
            assert (M.shape, U.shape) == ((plan.spaces[name].merged, size), (size, plan.spaces[name].merged))
        total = torch.stack(merge).sum(0).sum(1)
        torch.testing.assert_close(total, torch.ones(len(total)).double())
        assert all(bool((U.sum(1) == 1).all()) for U in unmerge)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["MLP", "ViT", "ResNet"])
def test_operations_are_those_that_torch_counts(kind: str) -> None:
    sources = [MAKE[kind](seed) for seed in (1, 2)]
    sources = [replace(source, name=name) for source, name in zip(sources, "ab")]
    found = widening(sources, 2.0)
    chosen = found.evenly(2.0)
    plan = found.plan(chosen)
    counts = []
    for arch in (plan.arch, found.base.arch):
        module = plan.skeleton(arch)
        with FlopCounterMode(display=False) as counter:
            module(plan.family.sample(arch, 1, None))
        flops = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        counts.append(sum(n for op, n in flops.items() if "bmm" not in op and "attention" not in op))
    assert found.operations(chosen) == pytest.approx(counts[0] / counts[1], rel=1e-6)
    assert 1 < found.operations(chosen) <= 2


def test_the_widths_are_the_best_within_the_budget() -> None:
    found = widening([mlp_source(name, (9, 7, 8), seed) for seed, name in ((1, "a"), (2, "b"))], 1.7)

    def gain(name: str, size: int) -> float:
        now = found.base.spaces[name].merged
        return {"h0": 1.0, "h1": 3.0, "h2": 0.5}[name] * (1 - ((2 * now - size) / now) ** 2)

    def value(chosen: Sequence[int]) -> float:
        levels = [own[at] for own, at in zip(found.entries, chosen)]
        return sum(gain(name, size) for level in levels for name, size in level.sizes.items())

    every = list(product(*(range(len(own)) for own in found.entries)))
    assert len(every) > 100
    expected = max(value(own) for own in every if found.operations(own) <= 1.7)
    best = found.best(gain, 1.7)
    assert value(best) == pytest.approx(expected)
    assert found.operations(best) <= 1.7


def test_many_widths_are_raised_greedily(monkeypatch: pytest.MonkeyPatch) -> None:
    found = widening([mlp_source(name, (9, 7, 8), seed) for seed, name in ((1, "a"), (2, "b"))], 1.7)
    best = found.best(lambda name, size: float(size) ** 0.5, 1.7)
    monkeypatch.setattr(widening_module, "TRIED", 1)
    greedy = found.best(lambda name, size: float(size) ** 0.5, 1.7)
    assert any(greedy)
    assert found.operations(greedy) <= 1.7
    assert found.operations(best) <= 1.7


def test_the_images_choose_where_units_are_separate() -> None:
    """The first layers are equal, so that only the second one is widened."""
    sources = [mlp_source(name, (9, 7), seed) for seed, name in ((1, "a"), (2, "b"))]
    first = {n: t for n, t in sources[0].weights.items() if n.startswith("fc0")}
    sources[1] = replace(sources[1], weights={**sources[1].weights, **first})
    method = PLeaS(budget_flops=1.1)
    problem = problem_of(sources, 30, method.plan(sources))
    plan = method.refined(problem)
    assert [plan.spaces[name].merged > plan.spaces[name].sources[0] for name in ("h0", "h1")] == [False, True]
    assert method.fit(replace(problem, plan=plan)).facts["separate_units"] == plan.spaces["h1"].merged - 7


@pytest.mark.full
def test_heads_stay_whole_and_lie_side_by_side() -> None:
    sources = [replace(vit_source("class token", seed), name=name) for seed, name in ((1, "a"), (2, "b"))]
    method = PLeaS(budget_flops=2.0)
    problem = problem_of(sources, 12, method.plan(sources))
    plan = method.refined(problem)
    old, new = (arch.args["num_heads"] for arch in (plan.source_archs[0], plan.arch))
    assert new > old
    assert plan.arch.features // new == plan.source_archs[0].features // old
    weights = method.fit(replace(problem, plan=plan)).weights
    assert all(bool(torch.isfinite(t).all()) for t in weights.values())


@pytest.mark.full
def test_a_given_width_and_too_small_a_budget_are_refused() -> None:
    sources = [replace(vit_source("class token", seed), name=name) for seed, name in ((1, "a"), (2, "b"))]
    with pytest.raises(ConfigError) as error:
        PLeaS(width=24).plan(sources)
    assert str(error.value) == (
        "method.width: method=pleas derives widths and heads from method.budget_flops. Leave method.width at null."
    )
    with pytest.raises(ConfigError) as error:
        PLeaS(budget_flops=1.01).plan(sources)
    smallest = widening(sources, 9.0).smallest()
    assert str(error.value) == (
        f"method.budget_flops=1.01: the smallest network that is wider has {smallest:.2f} times the operations of "
        "one source. Pass 1, or at least that."
    )


def test_spaces_that_cannot_be_widened_are_named() -> None:
    variant = "CLIP quick-GELU with projection"  # a final projection keeps its width
    sources = [replace(vit_source(variant, seed), name=name) for seed, name in ((1, "a"), (2, "b"))]
    with pytest.raises(ConfigError) as error:
        PLeaS(budget_flops=1.5).plan(sources)
    names = list(compile_plan(sources).spaces)
    assert str(error.value) == (
        f"method.budget_flops=1.5: no space of these networks can be widened ({', '.join(names[:3])} and "
        f"{len(names) - 3} more). Pass method.budget_flops=1."
    )


def test_the_maps_before_the_least_squares_fold_to_the_mean_of_matched_weights() -> None:
    sources = [mlp_source(name, (4, 3), seed) for seed, name in ((1, "a"), (2, "b"))]
    problem = problem_of(sources, 20)
    similar = similarities(problem, first=True)
    orders = match_all(problem.plan, similar, 2)
    pairs = partial_merge(problem.plan, problem.plan, similar, orders)
    merge, unmerge = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
    maps = maps_of_spaces(problem.plan, merge, unmerge, {})
    found = fold(problem.plan, maps, problem.weights())
    second = permute(problem.plan, sources[1].weights, orders[1])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.detach(), (sources[0].weights[name] + second[name]) / 2)
