from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.average import Average
from tests.support.sources import mlp_source


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_average_of_a_model_with_itself_is_that_model(make_problem: Callable[..., Problem], norm: str) -> None:
    copies = [mlp_source(name, [8, 6], 1, norm=norm) for name in "ab"]
    solution = Average().fit(make_problem(copies))
    assert all(torch.equal(solution.weights[n], copies[0].weights[n]) for n in copies[0].weights)
    assert all(torch.equal(U, torch.eye(6)) for U in solution.projectors)


def test_the_average_is_the_mean_of_every_tensor(make_problem: Callable[..., Problem]) -> None:
    sources = [mlp_source(f"s{i}", [8, 6], i, norm="batch") for i in range(3)]
    solution = Average().fit(make_problem(sources))
    for name, tensor in solution.weights.items():
        if tensor.is_floating_point():
            mean = sum(s.weights[name].double() for s in sources) / 3
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)


def test_the_average_needs_no_images(make_problem: Callable[..., Problem]) -> None:
    from dataclasses import replace

    problem = make_problem()
    empty = torch.empty(0, dtype=torch.long)
    none = type(problem.images)(torch.empty(0), empty, empty, empty)
    with_images, without = Average().fit(problem), Average().fit(replace(problem, images=none))
    assert all(torch.equal(with_images.weights[n], without.weights[n]) for n in without.weights)
