from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from fsmerge_cli.training.teachers import network
from tests.support.sources import folding, mlp_source

Make = Callable[..., Problem]


@pytest.mark.full
@pytest.mark.parametrize("maps", ["diagonal", "low_rank", "full"])
@pytest.mark.parametrize("targets", ["own", "all"])
@pytest.mark.parametrize("start", ["first", "average"])
def test_training_lowers_the_loss_and_the_fold_equals_the_trained_supernet(
    make_problem: Make, maps: str, targets: str, start: str
) -> None:
    problem = make_problem()
    solution = folding(steps=60, lr=2e-2, maps=maps, rank=3, targets=targets, start=start).fit(problem)
    assert sum(solution.trace.loss[-5:]) < 0.9 * sum(solution.trace.loss[:5])
    assert solution.maps is not None
    reference = UnfoldedSuperNet(problem.plan, solution.maps, problem.weights())
    backbone = problem.plan.skeleton()
    backbone.load_state_dict(dict(solution.weights), assign=True)
    z = backbone(problem.images.images)
    torch.testing.assert_close(z.double(), reference(problem.images.images), rtol=1e-4, atol=1e-5)
    for i, U in enumerate(solution.projectors):
        torch.testing.assert_close((z @ U.T).double(), reference.project(z, i), rtol=1e-4, atol=1e-5)


def test_unequal_widths_and_three_sources(make_problem: Make) -> None:
    sources = [mlp_source(f"s{i}", w, i, norm="batch") for i, w in enumerate([[8, 6], [5, 7], [9, 4]])]
    solution = folding(steps=5, width=(7, 5)).fit(make_problem(sources, width=(7, 5)))
    assert tuple(solution.weights["fc0.weight"].shape) == (7, 16)
    assert [tuple(U.shape) for U in solution.projectors] == [(6, 5), (7, 5), (4, 5)]
    assert len(solution.trace.start_error) == 3
    assert solution.trace.start_error[0] > 0


def test_source_weights_are_not_changed(make_problem: Make) -> None:
    problem = make_problem()
    before = [{n: t.clone() for n, t in s.weights.items()} for s in problem.sources]
    folding(steps=5).fit(problem)
    assert all(torch.equal(b[n], s.weights[n]) for b, s in zip(before, problem.sources) for n in b)


@pytest.mark.full
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_deterministic_and_does_not_use_the_global_generator(make_problem: Make, name: str) -> None:
    method = METHODS[name]()
    if isinstance(method, Trained):
        method = replace(method, steps=5)
    state = torch.random.get_rng_state()
    base = mlp_source("base", [8, 8], 3)
    first, second = method.fit(make_problem(base=base)), method.fit(make_problem(base=base))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first.weights[n], second.weights[n]) for n in first.weights)
    assert all(map(torch.equal, first.projectors, second.projectors))


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if issubclass(m, Trained)])
def test_missing_images_are_reported(make_problem: Make, name: str) -> None:
    problem = make_problem()
    empty = torch.empty(0, dtype=torch.long)
    with pytest.raises(DataError) as error:
        METHODS[name]().fit(replace(problem, images=type(problem.images)(torch.empty(0), empty, empty, empty)))
    assert str(error.value) == (
        "this method needs unlabelled images. Pass data=... with data.images_per_task of 1 or more, "
        "data.auxiliary={name: generated}, or method=average, which needs none."
    )


@pytest.mark.full
def test_sequential_merging_multiplies_the_projectors(make_problem: Make) -> None:
    sources = [mlp_source(f"s{i}", [8, 6], i) for i in range(3)]
    problem = make_problem(sources, per_task=40, held=4)
    solution = folding(steps=150, lr=1e-2, sequential=True, batch_size=16).fit(problem)
    trace = solution.trace
    assert len(trace.loss) == 300
    assert len(trace.start_error) == 3
    assert trace.start_error[0] == 0.0
    assert [step for step, _ in trace.validation][-1] == 300
    assert 150 < trace.chosen_step <= 300
    assert trace.trainable == 2 * folding(steps=1).fit(make_problem(sources[:2])).trace.trainable
    assert [tuple(U.shape) for U in solution.projectors] == [(6, 6)] * 3
    backbone = problem.plan.skeleton()
    backbone.load_state_dict(dict(solution.weights), assign=True)
    for i, (source, U) in enumerate(zip(sources, solution.projectors)):
        own = problem.task_images(i)
        target = network(source)(own)
        error = (backbone(own) @ U.T - target).square().mean()
        unmerged = (network(sources[0])(own) - target).square().mean()
        assert error < (0.5 * unmerged if i else 0.5 * target.var())


def test_sequential_merging_of_two_sources_changes_nothing(make_problem: Make) -> None:
    a, b = (folding(steps=5, sequential=s).fit(make_problem()) for s in (False, True))
    assert all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)
