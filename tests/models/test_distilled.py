"""Plans of distillations from sources of unlike architectures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fsmerge_cli.alignment.feature_projectors import fitted_projectors
from fsmerge_cli.common.errors import ConfigError, MismatchError
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network
from tests.support.sources import distilling, mlp_source, random_images
from tests.support.vits import vit_source

Make = Callable[..., Problem]


def other(seed: int = 2) -> Source:
    """Another patch size, depth, width, pooling and LayerScale."""
    options = {"patch_size": 2, "depth": 3, "embed_dim": 16, "num_heads": 2, "init_values": 0.5}
    return replace(vit_source("pre-norm (CLIP)", seed, **options), name="b", head=None)


def pair() -> list[Source]:
    return [replace(vit_source("class token", 1), name="a", head=None), other()]


def test_of_the_other_sources_only_the_features_matter() -> None:
    plan = distilling(start="first").plan(pair())
    assert plan.distilled
    assert plan.arch == pair()[0].arch
    assert plan.spaces[plan.features.space].sources == (12, 16)


def test_the_student_starts_as_source_1_with_fitted_projectors() -> None:
    sources = pair()
    images = random_images(2, 60, sources[0].arch.input_size)
    method = distilling(start="first", steps=1, lr=1e-9)
    problem = Problem(method.plan(sources), sources, images)
    found = method.fit(problem)
    for name, tensor in found.weights.items():
        torch.testing.assert_close(tensor, sources[0].weights[name], rtol=1e-6, atol=1e-7)
    first, second = found.projectors
    with torch.no_grad():
        x, y = (network(source)(images.images).double() for source in sources)
    torch.testing.assert_close(x @ first.double().T, x, rtol=0, atol=1e-2)
    left = [float((y - x @ U.double().T).square().sum()) for U in (second, torch.linalg.lstsq(x, y).solution.T)]
    assert left[1] <= left[0] < 1.3 * left[1]  # ridge, chosen by cross-validation


def test_without_projectors_the_features_are_compared_as_they_are() -> None:
    first = pair()[0]
    second = replace(vit_source("class token", 2, patch_size=2, depth=3), name="b", head=None)
    method = distilling(start="first", steps=2, projector="identity")
    problem = Problem(method.plan([first, second]), [first, second], random_images(2, 8, first.arch.input_size))
    assert problem.plan.distilled
    assert all(torch.equal(U, torch.eye(12)) for U in method.fit(problem).projectors)


def test_networks_of_other_families_of_images_may_differ_as_well() -> None:
    sources = [mlp_source("a", [8, 6], 1), mlp_source("b", [8, 7, 5], 2)]
    method = distilling(start="first", steps=1)
    problem = Problem(method.plan(sources), sources, random_images(2, 8, sources[0].arch.input_size))
    assert [tuple(U.shape) for U in method.fit(problem).projectors] == [(6, 6), (5, 6)]


def test_without_images_projectors_are_the_first_units(make_problem: Make) -> None:
    problem = make_problem(per_task=4)
    empty = replace(problem.images, train=problem.images.train[:0])
    first = fitted_projectors(replace(problem, images=empty), problem.sources[0].weights)[0]
    assert torch.equal(first, torch.eye(8))


def refusal(method: FSMerge | object, sources: list[Source]) -> str:
    with pytest.raises(MismatchError) as error:
        method.plan(sources)  # type: ignore[union-attr]
    return str(error.value)


def test_other_methods_and_starts_refuse_them() -> None:
    hint = "; method=kd method.start=first trains a network like 'a' on the features of all\n"
    message = refusal(FSMerge(), pair())
    assert "  - patch size: 'a' has [4, 4], 'b' has [2, 2]\n" in message
    assert hint not in message
    assert hint in refusal(distilling(start="matched"), pair())


def test_sources_of_other_inputs_are_refused() -> None:
    first, second = pair()
    larger = replace(vit_source("class token", 2, img_size=16), name="b", head=None)
    method = distilling(start="first")
    assert "; models.sources.N.input_size=[8, 8] resamples the position embeddings of the other" in refusal(
        method, [first, larger]
    )
    assert "  - 'a' is a vit, 'm' a mlp\n" in refusal(method, [first, mlp_source("m", [6, 5], 1)])
    broken = replace(second, weights={n: t for n, t in second.weights.items() if n != "cls_token"})
    assert "'b' lacks the tensors cls_token" in refusal(method, [first, broken])
    assert "the task name 'a' is used 2 times" in refusal(method, [first, replace(second, name="a")])


@pytest.mark.parametrize("more", [{"width": 24}, {"heads": 2}])
def test_the_first_source_keeps_its_size(more: dict[str, int]) -> None:
    method = replace(distilling(start="first"), **more)  # type: ignore[arg-type]
    problem = Problem(method.plan(pair()), pair(), random_images(2, 4, (2, 8, 8)))
    with pytest.raises(ConfigError) as error:
        method.check(problem)
    assert str(error.value) == (
        "the architectures of the sources differ, and method.start=first takes the weights of source 1 as they "
        "are. Pass method.width=null and method.heads=null, or method.start=random."
    )


def test_a_new_network_may_have_another_width() -> None:
    method = replace(distilling(start="random", steps=1), width=24)
    problem = Problem(method.plan(pair()), pair(), random_images(2, 4, (2, 8, 8)))
    assert [tuple(U.shape) for U in method.fit(problem).projectors] == [(12, 24), (16, 24)]
