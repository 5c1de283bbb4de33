"""Mean and std in the first layer do not change what a method of task vectors does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fsmerge_cli.checkpoints.preprocessing import fold_normalisation, refolded, unfolded
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.task_vectors.tsv import decorrelated
from fsmerge_cli.models.parent import parent_notes
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Pixels, Source
from fsmerge_cli.training.problem import Problem
from tests.support.common_initialisation import QUICK
from tests.support.sources import random_images
from tests.support.vits import vit_source

PIXELS: Pixels = ((0.485, 0.406), (0.229, 0.21))
VITS = ("class token", "pre-norm (CLIP)")
METHODS_WITHOUT_IMAGES = [name for name, cls in METHODS.items() if cls.uses_base and not cls.uses_images]


def trained(variant: str) -> list[Source]:
    """A parent and two sources with weights for normalised pixels."""
    base = vit_source(variant, 1)
    random = torch.Generator().manual_seed(5)
    moved = [
        {n: t + 0.05 * torch.randn(t.shape, generator=random) for n, t in base.weights.items()} for _ in range(2)
    ]
    return [base, *(replace(base, name=f"s{i}", weights=weights) for i, weights in enumerate(moved))]


def folded(source: Source, pixels: Pixels = PIXELS) -> Source:
    weights = fold_normalisation(source.family, source.arch, source.weights, *pixels, "here")
    return replace(source, weights=weights, folded=pixels)


def problem(sources: list[Source]) -> Problem:
    base, *others = sources
    return Problem(compile_plan(others), others, random_images(2, 5, base.arch.input_size), base=base)


@pytest.mark.full
@pytest.mark.parametrize("variant", VITS)
@pytest.mark.parametrize("name", METHODS_WITHOUT_IMAGES)
def test_folded_networks_merge_to_the_folded_result(name: str, variant: str) -> None:
    sources = trained(variant)
    plain = METHODS[name]().fit(problem(sources)).weights
    found = METHODS[name]().fit(problem([folded(own) for own in sources])).weights
    expected = fold_normalisation(sources[0].family, sources[0].arch, plain, *PIXELS, "here")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("variant", VITS)
@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if cls.uses_base and cls.uses_images])
def test_methods_that_run_the_networks_change_them_as_they_were_trained(name: str, variant: str) -> None:
    sources = trained(variant)
    method = METHODS[name](name=name, **QUICK.get(name, {}))  # type: ignore[arg-type]
    single = (folded(own) for own in sources)
    given = problem([replace(own, weights={n: t.float() for n, t in own.weights.items()}) for own in single])
    mean, std = (torch.tensor(own)[:, None, None] for own in PIXELS)
    normalised = replace(given.images, images=(given.images.images - mean) / std)
    plain = method.fit(replace(problem(sources), images=normalised)).weights
    found = method.fit(given).weights
    expected = fold_normalisation(sources[0].family, sources[0].arch, plain, *PIXELS, "here")
    for key, tensor in expected.items():
        assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pixels", [PIXELS, ((0.5,), (0.2, 0.3)), ((0.4, 0.1), (0.25,))])
@pytest.mark.parametrize("variant", VITS)
def test_unfolding_is_the_inverse_of_folding(variant: str, pixels: Pixels) -> None:
    source = vit_source(variant, 1)
    there = folded(source, pixels).weights
    back = unfolded(source.family, source.arch, there, pixels)
    again = refolded(source.family, source.arch, back, pixels)
    for key, tensor in source.weights.items():
        assert_close(back[key].to(tensor.dtype), tensor)
        assert_close(again[key].to(tensor.dtype), there[key])


def test_a_base_with_other_pixels_is_noted() -> None:
    base, first, second = trained("class token")
    sources = [folded(first), folded(second)]
    notes = list(parent_notes(compile_plan(sources), sources, base))
    for i, note in enumerate(notes[:2]):
        assert note == (
            f"models.base has mean [0.0] and std [1.0], 's{i}' mean [0.485, 0.406] and std [0.229, 0.21]: their "
            "first layers differ by this factor. If both were trained with the same, pass models.base.mean=[...] "
            "and models.base.std=[...]"
        )


def test_a_zero_task_vector_does_not_turn_the_others_in_tsv() -> None:
    own = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(own, full_matrices=False)
    expected = (U[:, :2] * s[:2]) @ Vh[:2]
    assert_close(decorrelated([own, torch.zeros_like(own)]), expected)
    assert_close(decorrelated([torch.zeros_like(own)] * 2), torch.zeros_like(own))


def test_breadcrumbs_without_an_entry_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        METHODS["breadcrumbs"](smallest=0.995).fit(problem(trained("class token")))
    assert str(error.value) == (
        "method.smallest=0.995 leaves no entry below method.largest=0.993, and the result would be models.base. "
        "Pass a smaller method.smallest."
    )
