"""`method.task_weights`: equal weights change nothing, only ratios matter, and all methods use them alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import merge
from fsmerge_cli.alignment.least_squares import mean, solve
from fsmerge_cli.alignment.matching import aligned
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import silent
from fsmerge_cli.methods import METHODS, Problem, Solution
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Trained, Weighted
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation, StudentNetwork
from fsmerge_cli.methods.regmean_pp import RegMeanPlusPlus
from fsmerge_cli.training.objective import Batch, objective
from fsmerge_cli.training.teachers import capture
from tests.support.sources import distilling, folding, mlp_source

pytestmark = pytest.mark.full

Make = Callable[..., Problem]
CPU = torch.device("cpu")
WEIGHTED = {name: cls for name, cls in METHODS.items() if issubclass(cls, Weighted)}
ALL_AT_ONCE = {
    name: {"steps": 8, "batch_size": 5} if issubclass(cls, Trained) else {} for name, cls in WEIGHTED.items()
}
CASES = [
    *ALL_AT_ONCE.items(),
    ("fs_merge", {"steps": 4, "sequential": True}),
    ("fs_merge", {"steps": 4, "start": "average"}),
    ("kd", {"steps": 4, "start": "average"}),
]


def fitted(name: str, problem: Problem, weights: tuple[float, ...] | None, **options: object) -> Solution:
    return WEIGHTED[name](task_weights=weights, **options).fit(problem)


def three(make_problem: Make) -> Problem:
    base = mlp_source("base", [8, 6], 9, norm="batch")
    return make_problem([mlp_source(f"s{i}", [8, 6], i, norm="batch") for i in range(3)], held=3, base=base)


def same(a: Solution, b: Solution) -> bool:
    pairs = [*((t, b.weights[n]) for n, t in a.weights.items()), *zip(a.projectors, b.projectors)]
    return all(torch.equal(x, y) for x, y in pairs)


def test_the_methods_with_task_weights() -> None:
    plain = {name for name, cls in WEIGHTED.items() if not cls.uses_base}
    matched = {"activation_matching", "cca", "orthogonal_matching", "ot_fusion"}
    matched |= {"straight_through", "weight_matching"}
    assert plain == matched | {"average", "fisher", "fs_merge", "kd", "regmean", "regmean_pp"}
    others = [cls for name, cls in METHODS.items() if name not in WEIGHTED]
    assert not any(field.name == "task_weights" for cls in others for field in fields(cls))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_equal_weights_change_nothing_bit_for_bit(
    name: str, options: dict[str, object], make_problem: Make
) -> None:
    problem = three(make_problem)
    plain = fitted(name, problem, None, **options)
    assert same(plain, fitted(name, problem, (1.0, 1.0, 1.0), **options))
    assert same(plain, fitted(name, problem, (0.3, 0.3, 0.3), **options))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_only_ratios_matter(name: str, options: dict[str, object], make_problem: Make) -> None:
    problem = three(make_problem)
    found = fitted(name, problem, (1.0, 2.0, 4.0), **options)
    assert same(found, fitted(name, problem, (8.0, 16.0, 32.0), **options))
    assert not same(found, fitted(name, problem, None, **options))
    assert not same(found, fitted(name, problem, (1.0, 4.0, 2.0), **options))


def test_large_weights_are_scaled_to_mean_1() -> None:
    assert Average(task_weights=(1.0, 3.0)).weights_of_tasks(2) == (0.5, 1.5)
    assert Average(task_weights=(1.7e308, 1.7e308)).weights_of_tasks(2) == (1.0, 1.0)
    assert Average().weights_of_tasks(3) == (1.0, 1.0, 1.0)


def test_the_average_is_the_weighted_sum_running_statistics_included(make_problem: Make) -> None:
    problem = three(make_problem)
    found = fitted("average", problem, (1.0, 2.0, 5.0)).weights
    assert "norm0.running_var" in found
    for name, tensor in found.items():
        if tensor.is_floating_point():
            tensors = [s.weights[name] for s in problem.sources]
            expected = tensors[0] / 8 + tensors[1] * 2 / 8 + tensors[2] * 5 / 8
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_matching_averages_the_reordered_sources(make_problem: Make) -> None:
    problem = three(make_problem)
    found = fitted("activation_matching", problem, (3.0, 1.0, 1.0)).weights
    ordered = aligned(problem, "activations").problem.sources
    for name in ("fc0.weight", "fc1.bias", "norm1.running_mean"):
        expected = sum(w * s.weights[name] for w, s in zip((0.6, 0.2, 0.2), ordered))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_the_closed_form_is_weighted_least_squares() -> None:
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(40, 6, dtype=torch.float64, generator=random) * s for s in (1, 3)]
    matrices = [torch.randn(4, 6, dtype=torch.float64, generator=random) for _ in range(2)]
    weights = (0.25, 1.75)
    rows = torch.cat([w**0.5 * X for w, X in zip(weights, inputs)])
    targets = torch.cat([w**0.5 * X @ W.T for w, X, W in zip(weights, inputs, matrices)])
    found, condition = solve([X.T @ X / 40 for X in inputs], matrices, 1.0, weights)
    torch.testing.assert_close(found, torch.linalg.lstsq(rows, targets).solution.T, rtol=1e-4, atol=1e-5)
    values = torch.linalg.eigvalsh(rows.T @ rows / 40)
    assert condition == pytest.approx(float(values[-1] / values[0]), rel=1e-3)


def test_directions_without_input_take_the_weighted_mean() -> None:
    X = torch.zeros(5, 3, dtype=torch.float64)
    X[:, 0] = 1.0
    matrices = [torch.full((2, 3), value, dtype=torch.float64) for value in (1.0, 5.0)]
    found, _ = solve([X.T @ X / 5] * 2, matrices, 1.0, (0.5, 1.5))
    torch.testing.assert_close(found, torch.full((2, 3), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("name", ["regmean", "regmean_pp"])
def test_regmean_weights_its_grams_and_its_means(name: str, make_problem: Make) -> None:
    problem = make_problem([mlp_source(n, [8, 6], i) for i, n in enumerate("ab")])
    found = fitted(name, problem, (1.0, 3.0), align="none", scale=0.7).weights
    pixels = [problem.task_images(i).flatten(1).double() for i in range(2)]
    own = [s.weights["fc0.weight"] for s in problem.sources]
    expected, _ = solve([X.T @ X / len(X) for X in pixels], own, 0.7, (0.5, 1.5))
    torch.testing.assert_close(found["fc0.weight"], expected)
    torch.testing.assert_close(found["fc1.bias"], mean(problem.weights(), "fc1.bias", (0.5, 1.5)))
    biases = [s.weights["fc1.bias"] for s in problem.sources]
    torch.testing.assert_close(found["fc1.bias"], 0.25 * biases[0] + 0.75 * biases[1])


def test_regmean_pp_uses_the_outputs_of_the_weighted_layers(make_problem: Make) -> None:
    problem = make_problem([mlp_source(n, [8, 6], i, activation="tanh") for i, n in enumerate("ab")])
    found = RegMeanPlusPlus(align="none", task_weights=(1.0, 3.0)).fit(problem).weights
    inputs = [
        torch.tanh(problem.task_images(i).flatten(1) @ found["fc0.weight"].T + found["fc0.bias"]) for i in (0, 1)
    ]
    grams = [X.double().T @ X.double() / len(X) for X in inputs]
    expected, _ = solve(grams, [s.weights["fc1.weight"] for s in problem.sources], 0.9, (0.5, 1.5))
    torch.testing.assert_close(found["fc1.weight"], expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_weighted_sum_of_the_tasks(make_problem: Make) -> None:
    problem = three(make_problem)
    targets = capture(problem.sources, problem.images, "own", Hardware(features="memory"), CPU, silent)
    student = StudentNetwork(problem, "first", "linear").double()
    rows, weights = problem.images.train, (0.5, 0.5, 2.0)
    pixels = problem.images.images.double()
    parameters = list(student.parameters())

    def gradient(factors: tuple[float, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        weighted = [replace(own, weight=w) for own, w in zip(targets, factors)]
        loss = objective(student, Batch.of(pixels, weighted, rows), weighted)
        return loss, list(torch.autograd.grad(loss, parameters))

    loss, found = gradient(weights)
    parts = [gradient(tuple(float(i == j) for j in range(3))) for i in range(3)]
    torch.testing.assert_close(loss, sum(w * part for w, (part, _) in zip(weights, parts)))
    for i, own in enumerate(found):
        torch.testing.assert_close(own, sum(w * part[i] for w, (_, part) in zip(weights, parts)))


@pytest.mark.parametrize("method", [FSMerge, Distillation])
def test_a_task_with_a_larger_weight_has_a_smaller_error(method: type[Trained], make_problem: Make) -> None:
    problem = make_problem(per_task=40, held=8)
    errors = {}
    for weights in ((1.0, 20.0), (20.0, 1.0)):
        solution = method(steps=80, lr=1e-2, start="matched", task_weights=weights).fit(problem)  # type: ignore[call-arg]
        backbone = problem.plan.skeleton()
        backbone.load_state_dict(dict(solution.weights), assign=True)
        own = problem.task_images(1)
        target = problem.plan.skeleton()
        target.load_state_dict(dict(problem.sources[1].weights), assign=True)
        errors[weights] = (backbone(own) @ solution.projectors[1].T - target(own)).square().mean().item()
    assert errors[1.0, 20.0] < 0.9 * errors[20.0, 1.0]


def test_the_best_step_has_the_lowest_weighted_validation_loss(make_problem: Make) -> None:
    problem = make_problem(per_task=40, held=8)
    targets = capture(problem.sources, problem.images, "own", Hardware(features="memory"), CPU, silent)
    weighted = [replace(own, weight=w) for own, w in zip(targets, (0.5, 1.5))]
    method = distilling(steps=20, lr=1e-2, task_weights=(1.0, 3.0))
    solution = method.fit(problem)
    student = StudentNetwork(problem, "first", "linear")
    student.network.load_state_dict(dict(solution.weights))
    student.projectors = torch.nn.ParameterList(solution.projectors)
    held = problem.images.validation
    error = objective(student, Batch.of(problem.images.images, weighted, held), weighted)
    assert error.item() == pytest.approx(min(e for _, e in solution.trace.validation), rel=1e-5)


def test_an_intermediate_result_has_the_mean_weight_of_its_tasks(
    make_problem: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    train = FSMerge.train

    def recorded(self: FSMerge, *args: Any, **options: Any) -> object:
        seen.append(self.weights_of_tasks(2))
        return train(self, *args, **options)

    monkeypatch.setattr(FSMerge, "train", recorded)
    folding(steps=1, sequential=True, task_weights=(1.0, 3.0, 4.0)).fit(three(make_problem))
    assert seen == [pytest.approx((0.5, 1.5)), pytest.approx((2 / 3, 4 / 3))]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0), ()])
def test_a_wrong_number_of_weights_is_refused_before_anything_is_read(weights: tuple[float, ...]) -> None:
    message = (
        f"method.task_weights has {len(weights)} values, but there are 2 sources. Give one positive number per "
        "source, in the order of models.sources, or null."
    )
    entries = [{"name": name, "checkpoint": "nowhere"} for name in "ab"]
    with pytest.raises(ConfigError) as error:
        merge(entries, method=Average(task_weights=weights))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[1,0]", "method.task_weights.1: should be greater than 0, got 0."),
        ("[1,-2]", "method.task_weights.1: should be greater than 0, got -2."),
        ("[1,inf]", "method.task_weights.1: should be a finite number, got inf."),
        ("[1,many]", "method.task_weights.1: should be a valid number, got 'many'."),
        ("2", "method.task_weights: should be a valid tuple, got 2."),
    ],
)
def test_an_invalid_weight_is_reported(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["merge", "+models=digits_mlp_pair", "method=kd", f"method.task_weights={given}"]) == 2
    assert capsys.readouterr().err == f"fsmerge: error: {message}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weights", [None, (2.0, 2.0), (1.0, 9.0)])
def test_the_row_average_has_equal_weights(weights: tuple[float, ...] | None) -> None:
    result = merge("digits_mlp_pair", method=Average(task_weights=weights))
    plain = merge("digits_mlp_pair", method="average").scores["merged"]
    assert result.scores["average"] == plain
    assert (result.scores["merged"] == plain) == (weights != (1.0, 9.0))
