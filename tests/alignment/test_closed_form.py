from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form.attention import reduced_logits, reduced_values
from fsmerge_cli.alignment.closed_form.moments import SMALLEST_BLOCK, Moments, regression, stride
from fsmerge_cli.alignment.closed_form.selection import BLOCK, select_groups, select_units
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.snapshots import SaveInterval, Snapshots
from fsmerge_cli.training.teachers import network
from tests.support.closed_form_reference import best_units, merged_features, root
from tests.support.sources import mlp_source, random_images
from tests.support.vits import VARIANTS, mark_full, vit_source

EXACT = set(VARIANTS) - {
    "no final norm",  # the mean of the stream, which no norm takes away at the end, is not kept
    "attention pooling, class token, norm, projection",  # the same: its norm is behind the pooling
    "pre-norm (CLIP)",  # a norm of all sources side by side has one denominator
    "CLIP quick-GELU with projection",
    "rotary, pre-norm (Perception Encoder)",
    "rotary, attention pooling (PE core)",
    "embedding norm",
    "SwiGLU (AIMv2)",
    "q/k norm",  # one scale for all heads
    "attention and MLP norms",  # the values of a head are rotated before their norm
    "rotary, sub-LN (EVA-02 CLIP)",  # the same
    "maximum pooling",  # does not commute with a rotation of the stream
}
"""Variants in which two copies of one source are that source again."""


def solve(method: FSClosedForm, sources: Sequence[Source], images: Tensor) -> tuple[Solution, list[Tensor]]:
    """The solution, and its approximation of every source's features on the images."""
    task = torch.arange(len(images)) % len(sources)
    every = torch.arange(len(images))
    plan = method.plan(sources)
    solution = method.fit(Problem(plan, sources, Images(images, task, every, every[:0])))
    merged = plan.skeleton()
    merged.load_state_dict(solution.weights, assign=True)
    with torch.no_grad():
        z = merged(images)
        return solution, [z @ U.T for U in solution.projectors]


def features(sources: Sequence[Source], images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [network(source)(images) for source in sources]


def pixels(source: Source, count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *source.arch.input_size, generator=torch.Generator().manual_seed(seed))


def test_a_regression_is_that_of_the_rows_repeated_by_their_weights() -> None:
    x, y = torch.randn(40, 5).double(), torch.randn(40, 3).double()
    weights = torch.randint(0, 4, (40,)).double()
    streamed, repeated = Moments(), Moments()
    for part in range(0, 40, 7):
        streamed.add(x[part : part + 7], y[part : part + 7], weights[part : part + 7])
    repeated.add(x.repeat_interleave(weights.long(), 0), y.repeat_interleave(weights.long(), 0))
    for a, b in zip(vars(regression(streamed, 1e-3)).values(), vars(regression(repeated, 1e-3)).values()):
        torch.testing.assert_close(a, b)
    found = regression(repeated, 0.0)
    rows = torch.cat([x, torch.ones(40, 1).double()], 1).repeat_interleave(weights.long(), 0)
    expected = torch.linalg.lstsq(rows, y.repeat_interleave(weights.long(), 0)).solution
    torch.testing.assert_close(torch.cat([found.matrix, found.intercept[:, None]], 1), expected.T)


def test_the_products_of_many_units_are_computed_in_blocks() -> None:
    x, weights = torch.randn(9, 2 * SMALLEST_BLOCK + 3).double(), torch.rand(9).double()
    sums = Moments()
    sums.add(x, None, weights)
    torch.testing.assert_close(sums.second(), (x.T * weights) @ x / weights.sum())


@pytest.mark.parametrize(("rows", "enough", "period", "found"), [(100, 60, 7, 1), (100, 25, 8, 3), (90, 9, 9, 10)])
def test_of_too_many_rows_every_nth_is_added_and_every_token_has_its_turn(
    rows: int, enough: int, period: int, found: int
) -> None:
    every = stride(rows, enough, period)
    assert every == found
    x = torch.arange(float(rows * 2))[:, None] + 1
    weights = torch.tensor([1.0, 0.0]).repeat(rows)  # every second row does not count
    sums = Moments(every)
    for part in torch.arange(rows * 2).split(11):
        sums.add(x[part], x[part], weights[part])
    kept = x[::2][::every].double()
    assert sums.weight == len(kept) >= min(rows, enough)
    torch.testing.assert_close(torch.as_tensor(sums.x), kept.sum(0))
    assert len({int(value) // 2 % period for value in kept}) == min(len(kept), period)


def test_the_ridge_pulls_towards_the_prior() -> None:
    moments, prior = Moments(), torch.randn(3, 5)
    moments.add(torch.randn(40, 5), torch.randn(40, 3))
    torch.testing.assert_close(regression(moments, 1e9, prior=prior).matrix.float(), prior)


def test_heads_of_full_size_have_the_same_logits_and_smaller_ones_the_least_error() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(300, 6).double() @ torch.randn(6, 6).double(), torch.randn(300, 6).double()
    C_q, C_k = q.T @ q / len(q), k.T @ k / len(k)
    A_q, A_k, _ = reduced_logits(C_q, C_k, 8)
    torch.testing.assert_close((q @ A_q.T) @ (k @ A_k.T).T / 8**0.5, q @ k.T / 6**0.5)
    A_q, A_k, values = reduced_logits(C_q, C_k, 4)
    left = (q @ A_q.T) @ (k @ A_k.T).T / 4**0.5 - q @ k.T / 6**0.5
    torch.testing.assert_close(left.square().mean(), values[4:].square().sum() / 6)
    written = torch.randn(5, 6).double()
    E, values = reduced_values(C_q, written, 3)
    o = q @ E.T
    rest = q @ written.T - o @ torch.linalg.lstsq(o, q @ written.T).solution
    torch.testing.assert_close(rest.square().sum() / len(q), values[3:].square().sum())


def test_units_and_groups_are_those_of_a_brute_force_search() -> None:
    torch.manual_seed(1)
    x = torch.randn(60, 9).double() @ torch.randn(9, 9).double()
    y = x @ torch.randn(9, 4).double()
    gram, cross = x.T @ x / 60, x.T @ y / 60
    assert select_units(gram, cross, 5).tolist() == best_units(x, y, 5)
    assert sorted(select_units(gram, cross, 9).tolist()) == list(range(9))
    groups = list(torch.arange(9).split(3))
    left = {}
    for pair in ((0, 1), (0, 2), (1, 2)):
        X = x[:, torch.cat([groups[g] for g in pair])]
        left[pair] = float((y - X @ torch.linalg.lstsq(X, y).solution).square().sum())
    assert tuple(select_groups(gram, cross, groups, 2)) == min(left, key=lambda pair: left[pair])


def test_the_selection_of_many_units_is_one_step_after_the_other() -> None:
    torch.manual_seed(2)
    count = 2 * BLOCK + 5
    x = torch.randn(400, 2 * count).double() @ torch.randn(2 * count, 2 * count).double()
    gram, cross = x.T @ x / 400, x.T @ (x @ torch.randn(2 * count, 7).double()) / 400
    left, rest, expected = gram.clone(), cross.clone(), list[int]()
    for _ in range(count):
        gain = rest.square().sum(1) / left.diagonal()
        gain[expected] = -1
        best = int(gain.argmax())
        expected.append(best)
        column, row = left[:, best] / left[best, best].sqrt(), rest[best] / left[best, best].sqrt()
        left, rest = left - column[:, None] * column, rest - column[:, None] * row
    assert select_units(gram, cross, count).tolist() == expected


def test_a_copy_of_a_selected_unit_is_not_selected() -> None:
    x = torch.randn(60, 4).double()
    x = torch.cat([x, x], 1)
    chosen = select_units(x.T @ x, x.T @ x, 4).tolist()
    assert sorted(unit % 4 for unit in chosen) == [0, 1, 2, 3]


@pytest.mark.full
def test_the_streamed_closed_form_is_the_dense_one() -> None:
    sources = [replace(vit_source("class token", seed), name=name) for seed, name in ((1, "a"), (2, "b"))]
    for source in sources:  # as the reference writes out LayerNorm's eps and knows no affine of its own
        assert source.arch.args["depth"] == 2
    images = pixels(sources[0], 90)
    method = FSClosedForm(views=0, row_weights=False, ridge=1e-3)
    solution, found = solve(method, sources, images)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        expected = merged_features(sources, images, 12, 48, 1e-3)
    finally:
        torch.set_default_dtype(before)
    for mine, own in zip(found, expected):
        torch.testing.assert_close(mine.double(), own, rtol=1e-3, atol=1e-3)
    assert solution.facts["heads_0_source_1"] + solution.facts["heads_0_source_2"] == 6


@pytest.mark.parametrize("variant", mark_full(sorted(EXACT)))
def test_two_copies_of_a_source_are_that_source(variant: str) -> None:
    source = vit_source(variant, 1)
    sources = [source, replace(source, name="copy")]
    images = pixels(source, 120)
    _, found = solve(FSClosedForm(views=0, heads="same", ridge=1e-9), sources, images)
    for mine, own in zip(found, features(sources, images)):
        torch.testing.assert_close(mine, own, rtol=1e-3, atol=1e-3 * float(own.abs().max()))


@pytest.mark.full
@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_without_corrections_the_maps_fold_to_the_weights(variant: str) -> None:
    sources = [replace(vit_source(variant, seed), name=name) for seed, name in ((1, "a"), (2, "b"))]
    method = FSClosedForm(views=0, correct=False)
    solution, _ = solve(method, sources, pixels(sources[0], 40))
    assert solution.maps is not None
    plan = method.plan(sources)
    folded = fold(plan, solution.maps, [source.weights for source in sources])
    for name, tensor in solution.weights.items():
        torch.testing.assert_close(folded[name], tensor, rtol=0, atol=0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in solution.weights.values())


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_as_wide_as_both_sources_is_both_sources(norm: str, bias: bool) -> None:
    sources = [mlp_source(name, (7, 5), seed, norm=norm, bias=bias) for seed, name in ((1, "a"), (2, "b"))]
    images = random_images(2, 30).images
    for correct in (True, False):
        _, found = solve(FSClosedForm(width=(14, 10), views=0, correct=correct), sources, images)
        for mine, own in zip(found, features(sources, images)):
            torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_two_copies_of_an_mlp_are_that_mlp(norm: str) -> None:
    source = mlp_source("a", (7, 5), 1, norm=norm)
    images = random_images(2, 30).images
    _, found = solve(FSClosedForm(views=0, ridge=1e-9), [source, replace(source, name="b")], images)
    for mine, own in zip(found, features([source, source], images)):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("kind", ["ViT", "MLP"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_is_stopped_continues_behind_the_last_finished_stage(
    kind: str, correct: bool, stop: int, tmp_path: Path
) -> None:
    if kind == "ViT":
        sources: list[Source] = [replace(vit_source("class token", seed), name=str(seed)) for seed in (1, 2)]
    else:
        sources = [mlp_source(str(seed), [12, 10, 8], seed, norm="batch") for seed in (1, 2)]
    method, images = FSClosedForm(views=1, correct=correct), pixels(sources[0], 24)
    task, every = torch.arange(24) % 2, torch.arange(24)
    problem = Problem(method.plan(sources), sources, Images(images, task, every, every[:0]))
    expected, events = method.fit(problem), list[int]()

    def stopped(event: Event) -> None:
        events.append(event.done)
        if event.done == stop + 1:
            raise KeyboardInterrupt

    def saving(progress: Progress) -> Problem:
        return replace(
            problem, snapshots=Snapshots(tmp_path / "s", every=SaveInterval(steps=1)), progress=progress
        )

    with pytest.raises(KeyboardInterrupt):
        method.fit(saving(stopped))
    events.clear()
    found = method.fit(saving(lambda event: events.append(event.done)))
    assert events[0] == stop + 1
    assert found.facts == expected.facts
    assert all(torch.equal(found.weights[name], t) for name, t in expected.weights.items())
    assert all(map(torch.equal, found.projectors, expected.projectors))
    assert {name: t.tolist() for name, t in (found.maps.state_dict() if found.maps else {}).items()} == {
        name: t.tolist() for name, t in (expected.maps.state_dict() if expected.maps else {}).items()
    }


def test_a_merged_model_wider_than_all_sources_is_refused() -> None:
    sources = [mlp_source(name, (7, 5), seed) for seed, name in ((1, "a"), (2, "b"))]
    method = FSClosedForm(width=(14, 11))
    with pytest.raises(ConfigError) as error:
        method.fit(Problem(method.plan(sources), sources, random_images(2, 4)))
    assert str(error.value) == (
        "method.width: the merged model has 11 units in 'h1', but all sources together have 10. Give at most the "
        "sum of the sources' widths."
    )


def test_the_root_of_the_reference_is_a_root() -> None:
    C = torch.randn(9, 5).T @ torch.randn(9, 5)
    C = C @ C.T
    torch.testing.assert_close(root(C) @ root(C), C, rtol=1e-3, atol=1e-2)


def test_heads_that_do_not_divide_the_width_are_fewer() -> None:
    sources = [vit_source("class token", seed, embed_dim=12, num_heads=4) for seed in (1, 2)]
    sources = [replace(source, name=name) for source, name in zip(sources, "ab")]
    method = FSClosedForm()  # 8 heads do not divide 12 units, 6 do
    assert method.plan(sources).arch.args["num_heads"] == 6
