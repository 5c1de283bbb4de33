"""The closed form of post-norm encoders of texts: the dense reference, and what has to be exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.common.inputs import NamedTensors, join
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data.draw import NO_TASK, Images
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.snapshots import SaveInterval, Snapshots
from fsmerge_cli.training.teachers import network
from tests.support.closed_form_text_reference import merged_features
from tests.support.encoders import VARIANTS, encoder_source, texts

KINDS = [pytest.param(kind, marks=[pytest.mark.full] * (kind not in ("BERT", "ELECTRA"))) for kind in VARIANTS]


def problem_of(method: FSClosedForm, sources: Sequence[Source], inputs: NamedTensors) -> Problem:
    every = torch.arange(len(inputs))
    images = Images(inputs, torch.full_like(every, NO_TASK), every, every[:0])
    return Problem(method.plan(sources), list(sources), images)


def solve(method: FSClosedForm, sources: Sequence[Source], inputs: NamedTensors) -> tuple[Solution, list[Tensor]]:
    """The solution, and its approximation of every source's features on the texts."""
    problem = problem_of(method, sources, inputs)
    solution = method.fit(problem)
    merged = problem.plan.skeleton()
    merged.load_state_dict(solution.weights, assign=True)
    with torch.no_grad():
        z = merged(inputs)
    return solution, [z @ U.T for U in solution.projectors]


def even(source: Source) -> Source:
    """With norms whose weights are equal for all units, as a norm in another basis has them."""
    weights = {
        name: torch.full_like(tensor, float(tensor.mean()))
        if "norm" in name.lower() and name.endswith("weight")
        else tensor
        for name, tensor in source.weights.items()
    }
    return replace(source, weights=weights)


def pair(kind: str) -> list[Source]:
    return [replace(encoder_source(kind, seed), name=name) for seed, name in ((1, "a"), (2, "b"))]


@pytest.mark.full
def test_the_streamed_closed_form_is_the_dense_one() -> None:
    sources = pair("BERT")
    inputs = texts(sources[0].arch, 60)
    _, found = solve(FSClosedForm(views=0, row_weights=False, ridge=1e-3), sources, inputs)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        expected = merged_features(sources, inputs, 16, 24, 1e-3)
    finally:
        torch.set_default_dtype(before)
    for mine, own in zip(found, expected):
        torch.testing.assert_close(mine.double(), own.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scrambled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_two_copies_of_a_source_are_that_source(kind: str, scrambled: bool) -> None:
    source = even(encoder_source(kind, 1))
    copy = replace(source, name="copy")
    if scrambled:
        plan = compile_plan([source, copy])
        copy = replace(
            copy, weights=permute(plan, source.weights, random_permutations(plan, 0, torch.Generator()))
        )
    inputs = texts(source.arch, 300)
    _, found = solve(FSClosedForm(views=0, heads="same", ridge=1e-9, row_weights=False), [source, copy], inputs)
    for own, mine in zip((source, copy), found):
        with torch.no_grad():
            expected = network(own)(inputs)
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=3e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_without_corrections_the_maps_fold_to_the_weights(kind: str) -> None:
    sources, method = pair(kind), FSClosedForm(views=0, correct=False)
    solution, found = solve(method, sources, texts(sources[0].arch, 40))
    assert solution.maps is not None
    folded = fold(method.plan(sources), solution.maps, [source.weights for source in sources])
    for name, tensor in solution.weights.items():
        torch.testing.assert_close(folded[name], tensor, rtol=0, atol=0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in (*solution.weights.values(), *found))


def test_padding_counts_nothing() -> None:
    sources = pair("BERT")
    inputs = texts(sources[0].arch, 40)
    longest = texts(sources[0].arch, 200, seed=1)
    assert longest.mask.shape[1] >= inputs.mask.shape[1]
    padded = join([inputs, longest])[:40]
    solutions = [solve(FSClosedForm(views=0), sources, own)[0] for own in (inputs.trimmed(), padded)]
    for name, tensor in solutions[0].weights.items():
        torch.testing.assert_close(solutions[1].weights[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_is_stopped_continues_behind_the_last_finished_branch(
    correct: bool, stop: int, tmp_path: Path
) -> None:
    method, sources = FSClosedForm(views=1, correct=correct), pair("BERT")
    problem = problem_of(method, sources, texts(sources[0].arch, 24))
    expected, events = method.fit(problem), list[int]()

    def stopped(event: Event) -> None:
        events.append(event.done)
        if event.done == stop:
            raise KeyboardInterrupt

    saving = replace(problem, snapshots=Snapshots(tmp_path / "s", every=SaveInterval(steps=1)))
    with pytest.raises(KeyboardInterrupt):
        method.fit(replace(saving, progress=stopped))
    events.clear()
    again = replace(
        saving,
        snapshots=Snapshots(tmp_path / "s", every=SaveInterval(steps=1)),
        progress=lambda event: events.append(event.done),
    )
    found = method.fit(again)
    assert events == [*range(stop, 5)]
    assert found.facts == expected.facts
    assert all(torch.equal(found.weights[name], t) for name, t in expected.weights.items())
    assert all(map(torch.equal, found.projectors, expected.projectors))
