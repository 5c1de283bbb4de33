from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fsmerge_cli.common.errors import ConfigError, MismatchError
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.slerp import Slerp, slerp
from tests.support.sources import mlp_source

Make = Callable[..., Problem]


def vectors(k: int = 2, n: int = 7, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(k, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_two_tensors_follow_the_formula_on_unnormalised_inputs(t: float) -> None:
    a, b = vectors()
    w = math.acos(float(a @ b / a.norm() / b.norm()))
    expected = (math.sin((1 - t) * w) * a + math.sin(t * w) * b) / math.sin(w)
    torch.testing.assert_close(slerp([a, b], [1 - t, t]), expected, rtol=1e-9, atol=1e-9)


def test_t_0_gives_source_1_and_t_1_source_2() -> None:
    a, b = vectors()
    torch.testing.assert_close(slerp([a, b], [1.0, 0.0]), a)
    torch.testing.assert_close(slerp([a, b], [0.0, 1.0]), b)


def test_orthogonal_vectors() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    torch.testing.assert_close(slerp([a, b], [0.5, 0.5]), torch.tensor([math.sqrt(2), 2 * math.sqrt(2)]))


def test_nearly_parallel_and_zero_tensors_are_interpolated_linearly() -> None:
    a = torch.tensor([1.0, 0.0, 0.0])
    b = torch.tensor([1.0, 0.02, 0.0])  # cosine 0.9998
    assert torch.equal(slerp([a, b], [0.75, 0.25]), torch.tensor([1.0, 0.005, 0.0]))
    assert torch.equal(slerp([a, 0 * a], [0.75, 0.25]), torch.tensor([0.75, 0.0, 0.0]))


def test_just_below_the_threshold_the_mean_is_spherical() -> None:
    a, angle = torch.tensor([1.0, 0.0]).double(), math.acos(0.9994)
    b = torch.tensor([math.cos(angle), math.sin(angle)]).double()
    middle = slerp([a, b], [0.5, 0.5])
    assert float(middle.norm()) == pytest.approx(1.0, abs=1e-7)  # a linear mean would be shorter
    assert float((a + b).norm() / 2) < 0.99986


def test_the_karcher_mean_of_unit_vectors_has_no_mean_tangent() -> None:
    units = [v / v.norm() for v in vectors(4, 6)]
    units = [u if u @ units[0] > 0 else -u for u in units]
    mean = slerp(units, [0.25] * 4)
    assert float(mean.norm()) == pytest.approx(1.0)
    logs = []
    for u in units:
        angle = math.acos(float(u @ mean))
        logs.append(angle / math.sin(angle) * (u - math.cos(angle) * mean))
    assert float(sum(logs).norm()) < 1e-9


def test_opposite_tensors_are_reported(make_problem: Make) -> None:
    first = mlp_source("a", [8, 8], 1)
    flipped = {n: -t if n == "fc1.weight" else t for n, t in first.weights.items()}
    with pytest.raises(MismatchError) as error:
        Slerp().fit(make_problem([first, replace(first, name="b", weights=flipped)]))
    assert error.value.reasons == (
        "fc1.weight points in opposite directions in two sources, which have no unique shortest path",
    )


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_mean_of_a_model_with_itself_is_that_model(make_problem: Make, norm: str) -> None:
    first = mlp_source("a", [8, 8], 1, norm=norm)
    solution = Slerp().fit(make_problem([first, replace(first, name="b"), replace(first, name="c")]))
    for name, tensor in solution.weights.items():
        torch.testing.assert_close(tensor, first.weights[name], rtol=1e-6, atol=1e-7)


def test_t_is_only_for_two_sources(make_problem: Make) -> None:
    sources = [mlp_source(n, [8], i) for i, n in enumerate("abc")]
    with pytest.raises(ConfigError) as error:
        Slerp(t=0.3).fit(make_problem(sources))
    assert str(error.value) == (
        "method.t=0.3 is only for two sources; 3 sources are merged with equal shares (t=0.5)."
    )


def test_directions_that_cancel_out_have_no_mean(make_problem: Make) -> None:
    sources = [mlp_source(n, [2], i, input_size=(1, 1, 2)) for i, n in enumerate("abc")]
    angles = torch.tensor([0.0, 2 / 3, 4 / 3]) * math.pi
    biases = torch.stack([angles.cos(), angles.sin()], 1)
    sources = [replace(s, weights={**s.weights, "fc0.bias": b}) for s, b in zip(sources, biases)]
    with pytest.raises(MismatchError) as error:
        Slerp().fit(make_problem(sources))
    assert error.value.reasons[-1] == (
        "fc0.bias points in directions that cancel out, which have no mean on the sphere"
    )


def test_parts_of_the_network_have_shares_of_their_own(make_problem: Make) -> None:
    problem = make_problem()
    first, second = (Slerp(t=t).fit(problem).weights for t in (0.2, 0.7))
    found = Slerp(boundaries=(0.37,), shares=((0.8, 0.2), (3.0, 7.0))).fit(problem).weights
    total = sum(t.numel() for t in first.values())
    flat = [torch.cat([t.flatten() for t in own.values()]) for own in (first, second, found)]
    split = round(0.37 * total)
    assert torch.equal(flat[2], torch.cat([flat[0][:split], flat[1][split:]]))
    once = Slerp(shares=((0.3, 0.7),)).fit(problem).weights
    assert all(torch.equal(once[n], t) for n, t in second.items())
    alone = Slerp(boundaries=(0.2, 0.6), shares=((0, 1), (0, 1), (0, 2))).fit(problem).weights
    for n, t in problem.sources[1].weights.items():
        torch.testing.assert_close(alone[n], t)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"boundaries": (0.5, 0.2), "shares": ((1.0, 1.0),) * 3},
            "method.boundaries=[0.5, 0.2]: should be different and ascending.",
        ),
        (
            {"boundaries": (0.5,)},
            "method.boundaries divides the network into parts that differ in their shares. Pass them too: "
            "method.shares=[[...],...].",
        ),
        (
            {"t": 0.3, "shares": ((1.0, 1.0),)},
            "method.t=0.3 and method.shares exclude each other. Pass one of them.",
        ),
        (
            {"shares": ((1.0, 1.0), (1.0, 0.0))},
            "method.shares has 2 lists, but method.boundaries makes 1 parts. Pass one list per part.",
        ),
        (
            {"shares": ((1.0, 1.0, 1.0),)},
            "method.shares has the list [1.0, 1.0, 1.0], but there are 2 sources. Pass one share per source, not "
            "all of them 0.",
        ),
    ],
)
def test_shares_that_do_not_fit_are_refused(options: dict[str, Any], message: str, make_problem: Make) -> None:
    with pytest.raises(ConfigError) as error:
        Slerp(**options).fit(make_problem())
    assert str(error.value) == message
