from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.kd import StudentNetwork
from fsmerge_cli.training.teachers import network
from tests.support.sources import distilling, mlp_source

Make = Callable[..., Problem]


@pytest.mark.parametrize("projector", ["linear", "identity"])
def test_the_student_starts_as_source_1(make_problem: Make, projector: str) -> None:
    problem = make_problem()
    student = StudentNetwork(problem, "first", projector)
    images = problem.images.images
    assert torch.equal(student(images), network(problem.sources[0])(images))
    assert torch.equal(student.project(student(images), 0), student(images))


def test_starts_differ(make_problem: Make) -> None:
    problem = make_problem()
    first, average, fresh = (
        StudentNetwork(problem, start, "linear").network.state_dict()["fc0.weight"]
        for start in ("first", "average", "random")
    )
    assert torch.equal(first, problem.sources[0].weights["fc0.weight"])
    torch.testing.assert_close(average, sum(s.weights["fc0.weight"] for s in problem.sources) / 2)
    assert not torch.equal(first, fresh)


def test_a_random_start_does_not_change_the_global_generator(make_problem: Make) -> None:
    before = torch.random.get_rng_state()
    StudentNetwork(make_problem(), "random", "linear")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("projector", ["linear", "identity"])
@pytest.mark.parametrize("targets", ["own", "all"])
def test_the_solution_is_the_trained_student(make_problem: Make, projector: str, targets: str) -> None:
    problem = make_problem([mlp_source(n, [8, 6], i, norm="batch") for i, n in enumerate("ab")])
    solution = distilling(steps=40, lr=1e-2, projector=projector, targets=targets).fit(problem)
    assert sum(solution.trace.loss[-5:]) < 0.7 * sum(solution.trace.loss[:5])
    assert solution.weights.keys() == problem.sources[0].weights.keys()
    statistics = [n for n in solution.weights if "running" in n]
    assert statistics
    assert all(torch.equal(solution.weights[n], problem.sources[0].weights[n]) for n in statistics)
    if projector == "identity":
        assert all(torch.equal(U, torch.eye(6)) for U in solution.projectors)
    else:
        assert not torch.equal(solution.projectors[1], torch.eye(6))
    backbone = problem.plan.skeleton()
    backbone.load_state_dict(dict(solution.weights), assign=True)
    estimate = backbone(problem.images.images) @ solution.projectors[1].T
    target = network(problem.sources[1])(problem.images.images)
    own = problem.images.task == 1
    start = network(problem.sources[0])(problem.images.images)
    assert (estimate - target)[own].square().mean() < (start - target)[own].square().mean()


def test_features_of_another_width_need_a_linear_projector(make_problem: Make) -> None:
    problem = make_problem([mlp_source("a", [8, 6], 1), mlp_source("b", [8, 5], 2)])
    with pytest.raises(ConfigError) as error:
        distilling(steps=1, projector="identity").fit(problem)
    assert str(error.value) == (
        "method.projector=identity needs features of one width, but b differ from the merged model. "
        "Pass method.projector=linear."
    )
    assert [tuple(U.shape) for U in distilling(steps=1).fit(problem).projectors] == [(6, 6), (5, 6)]
