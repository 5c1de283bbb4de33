"""Results of other methods as starts of kd and fs_merge: before the first step they are these results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.methods.starts import training_before
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.runs import estimate
from fsmerge_cli.training.snapshots import SaveInterval, Snapshots
from fsmerge_cli.training.teachers import network
from tests.support.resnets import resnet_source
from tests.support.sources import distilling, folding, mlp_source, random_images
from tests.support.vits import vit_source

STARTS = ("weight_matching", "straight_through", "ot_fusion", "cca", "orthogonal_matching")
KINDS = {
    "mlp": lambda name, seed: mlp_source(name, [12, 9], seed, norm="batch", activation="tanh"),
    "vit": lambda name, seed: replace(vit_source("class token", seed), name=name),
    "resnet": lambda name, seed: replace(
        resnet_source("deep stem, average pooling on the shortcut", seed), name=name
    ),
}
UNMOVED: dict[str, Any] = {"steps": 2, "lr": 1e-12}


def problem_of(kind: str, count: int = 2) -> Problem:
    sources = [KINDS[kind](f"s{seed}", seed) for seed in range(1, count + 1)]
    return Problem(compile_plan(sources), sources, random_images(count, 8, sources[0].arch.input_size))


def expected_of(start: str, method: Any) -> Any:
    """The method of the start with what the training hands on to it."""
    if start == "straight_through":
        before = training_before(method)
        assert before is not None
        return replace(before, reset_batchnorm=False)
    return METHODS[start](reset_batchnorm=False, task_weights=method.task_weights)


@pytest.mark.parametrize("make", [folding, distilling])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "kind", ["mlp", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("vit", "resnet"))]
)
def test_step_0_is_the_result_of_the_method(
    kind: str, start: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsmerge_cli.methods.straight_through.StraightThrough.total_steps", 3)
    problem = problem_of(kind)
    method = make(**UNMOVED, start=start, task_weights=(1.0, 3.0))
    found, expected = method.fit(problem), expected_of(start, method).fit(problem)
    module = problem.plan.skeleton()
    pixels, outputs = problem.images.images, []
    for solution in (found, expected):
        module.load_state_dict(dict(solution.weights), assign=True)
        outputs.append([module.eval()(pixels) @ U.T for U in solution.projectors])
    for own, other in zip(*outputs):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-3)
    errors = [
        ((a - network(source)(pixels)).square().sum(1) / network(source)(pixels).square().sum(1).mean()).mean()
        for a, source in zip(outputs[1], problem.sources)
    ]
    assert max(errors) > 1e-3  # so that another start would be noticed
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(found.weights[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("start", STARTS)
def test_a_sequential_merge_takes_the_start_at_every_stage(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsmerge_cli.methods.straight_through.StraightThrough.total_steps", 3)
    solution = folding(**UNMOVED, start=start, sequential=True).fit(problem_of("mlp", 3))
    assert len(solution.stages) == 2


@pytest.mark.full
@pytest.mark.parametrize("make", [folding, distilling])
@pytest.mark.parametrize("start", STARTS)
def test_a_resumed_training_ends_with_the_same_bits(
    start: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsmerge_cli.methods.straight_through.StraightThrough.total_steps", 3)
    problem, method = problem_of("mlp"), make(steps=4, start=start)
    found = []
    for _ in range(2):
        snapshots = Snapshots(tmp_path / "state", every=SaveInterval(steps=1))
        found.append(method.fit(replace(problem, snapshots=snapshots)))
    assert snapshots.resumed
    assert all(torch.equal(found[0].weights[name], tensor) for name, tensor in found[1].weights.items())
    assert all(torch.equal(a, b) for a, b in zip(found[0].projectors, found[1].projectors))


def test_the_estimate_counts_the_training_before() -> None:
    problem = problem_of("mlp")
    size, work = estimate.measure(problem.plan), estimate.Workload((8, 8), (0, 0))
    costs = [
        estimate.operations(problem.plan, METHODS["kd"](start=start), work, size)
        for start in ("weight_matching", "straight_through")
    ]
    assert costs[1] > 1.1 * costs[0]


SAME = (
    "needs sources with the width and number of heads of the merged model. Pass method.start=first, aligned or "
    "closed_form."
)


@pytest.mark.parametrize("start", ["weight_matching", "straight_through", "cca", "orthogonal_matching"])
@pytest.mark.parametrize("method", ["kd", "fs_merge"])
def test_other_widths_are_refused(method: str, start: str) -> None:
    sources = [mlp_source("a", [8, 6], 1), mlp_source("b", [8, 5], 2)]
    problem = Problem(compile_plan(sources), sources, random_images(2, 12))
    with pytest.raises(ConfigError) as error:
        METHODS[method](start=start).check(problem)
    assert str(error.value) == f"method.start={start} {SAME}"
    METHODS[method](start="ot_fusion").check(problem)  # which has the shape of source 1


@pytest.mark.parametrize("start", ["ot_fusion", "cca", "orthogonal_matching"])
def test_maps_need_an_option_that_holds_them(start: str) -> None:
    given = {"kd": {"projector": "identity"}, "fs_merge": {"maps": "low_rank", "rank": 2}}
    for (name, options), needed in zip(given.items(), ("projector=linear", "maps=full")):
        with pytest.raises(ConfigError) as error:
            METHODS[name](start=start, **options).check(problem_of("mlp"))
        assert str(error.value) == (
            f"method.start={start} mixes units by full maps and has a projector for every task. Pass "
            f"method.{needed}, or take another method.start."
        )
