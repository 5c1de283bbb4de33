from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods import Method, closed_form_solution
from fsmerge_cli.methods.budget import CLOSED_FORM_RATE
from fsmerge_cli.methods.closed_form_solution import started, started_maps
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import network
from tests.support.encoders import encoder_source, texts
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

TINY_RATE = 1e-9
"""A learning rate with which a step changes nothing that fp32 shows."""


@pytest.fixture(autouse=True)
def few_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form_solution, "IMAGES_PER_TASK", 20)


def pair(kind: str) -> list[Source]:
    if kind == "text":
        return [replace(encoder_source("BERT", seed=i), name=name) for i, name in enumerate("ab")]
    if kind == "vit":
        return [replace(vit_source("class token", seed=i), name=name) for i, name in enumerate("ab")]
    return [mlp_source(name, [8, 6], i, norm="batch") for i, name in enumerate("ab")]


def problem_of(method: Method, sources: list[Source], count: int = 24, validation: int = 0) -> Problem:
    plan = method.plan(sources)
    random = torch.Generator().manual_seed(0)
    images = texts(plan.arch, count) if plan.family.kind == "text" else None
    images = torch.rand(count, *plan.arch.input_size, generator=random) if images is None else images
    every = torch.arange(count)
    return Problem(plan, sources, Images(images, every % 2, every[validation:], every[:validation]))


def same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["vit", "mlp", "text"])
def test_the_maps_fold_to_the_closed_form_without_corrections(kind: str) -> None:
    problem = problem_of(FSMerge(start="closed_form"), pair(kind))
    expected = FSClosedForm(correct=False).fit(problem)
    maps, facts = started_maps(problem)
    same(dict(fold(problem.plan, maps, problem.weights())), dict(expected.weights))
    assert facts == expected.facts
    for i, U in enumerate(expected.projectors):
        torch.testing.assert_close(maps.read(problem.plan.features, i).dense(), U)
    backbone = problem.plan.skeleton()
    backbone.load_state_dict(dict(expected.weights), assign=True)
    supernet = SuperNet(problem.plan, maps, problem.weights())
    images = problem.images.images
    torch.testing.assert_close(supernet(images), backbone(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "mlp", "text"])
def test_the_maps_are_trained_as_those_of_other_starts(kind: str) -> None:
    problem = problem_of(FSMerge(start="closed_form"), pair(kind))
    maps, _ = started_maps(problem)
    other = start_maps(problem.plan, problem.weights(), "full", "first")
    shapes = {name: p.shape for name, p in other.named_parameters()}
    assert {name: p.shape for name, p in maps.named_parameters()} == shapes
    assert all(p.requires_grad and p.is_contiguous() for p in maps.parameters())


@pytest.mark.full
@pytest.mark.parametrize("kind", ["vit", "mlp", "text"])
@pytest.mark.parametrize("method", ["kd", "fs_merge"])
def test_the_training_starts_at_the_solution(kind: str, method: str) -> None:
    rates = {"lr": TINY_RATE, "matrix_lr": TINY_RATE, "weight_decay": 0.0}
    trained: Method = (
        Distillation(start="closed_form", steps=1, **rates)  # type: ignore[arg-type]
        if method == "kd"
        else FSMerge(start="closed_form", steps=2, finetune_share=0.5, finetune_lr=TINY_RATE, **rates)  # type: ignore[arg-type]
    )
    problem = problem_of(trained, pair(kind))
    solution = trained.fit(problem)
    expected = FSClosedForm(correct=method == "kd").fit(problem)
    same(dict(solution.weights), dict(expected.weights), 1e-4)
    assert solution.facts == expected.facts
    assert [U.shape for U in solution.projectors] == [U.shape for U in expected.projectors]


@pytest.mark.full
@pytest.mark.parametrize("correct", [True, False])
def test_the_closed_form_is_trained_towards_the_features_of_the_sources(correct: bool) -> None:
    sources = pair("vit")
    problem = problem_of(FSClosedForm(), sources, validation=4)

    def error(steps: int) -> float:
        solution = FSClosedForm(correct=correct, steps=steps, augment="none").fit(problem)
        assert len(solution.trace.loss) == steps
        trained_maps = not correct and steps > 0
        assert (len(solution.stages), solution.finetuned) == ((1, True) if trained_maps else (0, False))
        merged = problem.plan.skeleton()
        merged.load_state_dict(dict(solution.weights), assign=True)
        with torch.no_grad():
            z = merged(problem.images.images)
            wanted = [network(source)(problem.images.images) for source in sources]
            pairs = zip(solution.projectors, wanted)
            return float(torch.stack([(z @ U.T - y).square().mean() for U, y in pairs]).sum())

    assert error(60) < 0.9 * error(0)


def test_images_for_validation_are_not_solved_on() -> None:
    problem = problem_of(Distillation(start="closed_form"), pair("mlp"), validation=4)
    weights = dict(started(problem).weights)
    problem.images.images[:4] = 0.0
    same(weights, dict(started(problem).weights), 0.0)
    problem.images.images[4:] = problem.images.images[4:].flip(-1)
    changed = started(problem).weights
    assert any(not torch.equal(changed[name], weights[name]) for name in weights)


@pytest.mark.parametrize("method", [Distillation, FSMerge])
def test_the_merged_model_has_all_heads_unless_they_are_given(method: type[Distillation] | type[FSMerge]) -> None:
    sources = pair("vit")
    own = sources[0].family.heads(sources[0].arch)
    assert own is not None

    def heads(built: Method) -> int | None:
        plan = built.plan(sources)
        return plan.family.heads(plan.arch)

    assert heads(method(start="closed_form")) == 2 * own
    assert heads(method(start="closed_form", heads="same")) == own
    assert heads(method(start="closed_form", heads=1)) == 1
    assert heads(method(start="matched")) == own
    assert heads(method(heads="all")) == 2 * own


@pytest.mark.parametrize("method", [Distillation, FSMerge])
def test_learning_rates_are_smaller_unless_they_are_given(method: type[Distillation] | type[FSMerge]) -> None:
    usual, solved = method(start="first"), method(start="closed_form")
    assert solved.rate(384) == pytest.approx(CLOSED_FORM_RATE * usual.rate(384))
    assert solved.matrix_rate == pytest.approx(CLOSED_FORM_RATE * usual.matrix_rate)
    given = method(start="closed_form", lr=0.5, matrix_lr=0.25)
    assert (given.rate(384), given.matrix_rate) == (0.5, 0.25)


REFUSED = {
    "maps": (
        FSMerge(start="closed_form", maps="low_rank", rank=2),
        "method.start=closed_form needs full maps: method.maps=low_rank cannot hold the solution. Pass "
        "method.maps=full, or take another method.start.",
    ),
    "projector": (
        Distillation(start="closed_form", projector="identity"),
        "method.start=closed_form has a projector for every task. Pass method.projector=linear, or take another "
        "method.start.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_start_from_the_closed_form_is_refused(case: str) -> None:
    method, message = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        method.check(problem_of(method, pair("mlp")))
    assert str(error.value) == message


def test_a_sequential_merge_cannot_start_from_the_closed_form() -> None:
    method = FSMerge(start="closed_form", sequential=True)
    sources = [mlp_source(name, [8, 6], i) for i, name in enumerate("abc")]
    with pytest.raises(ConfigError, match=r"^method\.start=closed_form solves for all sources at once\. Pass "):
        method.check(problem_of(method, sources))
