"""Sources of a common initialisation, one of them scrambled (MergeLock): what names it, and what survives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.parent import parent_notes
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import network
from scripts.scrambled import locked
from tests.support.common_initialisation import random_vector
from tests.support.sources import random_images
from tests.support.vits import vit_source

SURVIVE = ("orthogonal_matching", "fs_closed_form")
FAIL = ("average", "slerp", "task_arithmetic", "ties", "weight_matching", "regmean_pp")


def problem_of(base: Source, sources: Sequence[Source]) -> Problem:
    images = random_images(2, 40, base.arch.input_size)
    return Problem(compile_plan(sources), sources, images, base=base)


@pytest.fixture(scope="module")
def groups() -> tuple[Problem, Problem]:
    """Two sources near one base, and the same with the second one scrambled."""
    base = replace(vit_source("class token", 1, embed_dim=24), name="base")
    sources = []
    for seed, name in enumerate("ab", 2):
        vector = random_vector(base, seed, 0.01)
        moved = {own: tensor + vector[own] for own, tensor in base.weights.items()}
        sources.append(replace(base, name=name, weights=moved, head=None))
    return problem_of(base, sources), problem_of(base, [sources[0], locked(sources[1], 7)])


def test_the_function_is_unchanged_and_the_note_names_what_was_done(groups: tuple[Problem, Problem]) -> None:
    plain, scrambled = groups
    pixels = plain.images.images
    torch.testing.assert_close(
        network(scrambled.sources[1])(pixels), network(plain.sources[1])(pixels), atol=1e-4, rtol=1e-4
    )
    assert plain.base is not None
    assert all("compared with models.base" in n for n in parent_notes(plain.plan, plain.sources, plain.base))
    _, note = parent_notes(scrambled.plan, scrambled.sources, plain.base)
    assert note.startswith("warning: models.base does not seem to be what 'b' was fine-tuned from (relative dist")
    assert note.endswith(
        "). But 8 of these are those of models.base with units reordered or turned: the source was scrambled "
        "after its fine-tuning (as MergeLock does), and a task vector of it has no meaning. Take a method that "
        "aligns the sources, such as method=orthogonal_matching or method=fs_closed_form"
    )


def test_an_unrelated_network_is_not_taken_for_a_scrambled_one(groups: tuple[Problem, Problem]) -> None:
    plain, _ = groups
    other = replace(vit_source("class token", 9, embed_dim=24), name="other", head=None)
    assert plain.base is not None
    (note,) = parent_notes(compile_plan([plain.sources[0], other]), [other], plain.base)
    assert note.endswith("). Pass the pretrained weights of the sources")


def change(groups: tuple[Problem, Problem], name: str) -> float:
    """How far the scrambling moves the features of the merged network, of the first task, relative to them."""
    features = []
    for problem in groups:
        method = METHODS[name](views=0) if name == "fs_closed_form" else METHODS[name](name=name)
        solution = method.fit(replace(problem, plan=method.plan(problem.sources)))
        module = method.plan(problem.sources).skeleton()
        module.load_state_dict(dict(solution.weights), assign=True)
        with torch.no_grad():
            features.append(module.eval()(problem.images.images) @ solution.projectors[0].T)
    return float((features[1] - features[0]).norm() / features[0].norm())


@pytest.mark.parametrize("name", ["orthogonal_matching", pytest.param("fs_closed_form", marks=pytest.mark.full)])
def test_methods_that_survive_merge_as_if_nothing_had_been_done(
    name: str, groups: tuple[Problem, Problem]
) -> None:
    assert change(groups, name) < 2e-2


@pytest.mark.parametrize("name", ["average", *(pytest.param(own, marks=pytest.mark.full) for own in FAIL[1:])])
def test_methods_that_do_not_survive_it(name: str, groups: tuple[Problem, Problem]) -> None:
    assert change(groups, name) > 5e-2
