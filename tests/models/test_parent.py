"""Whether models.base is what the sources were fine-tuned from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fsmerge_cli.models.parent import base_reasons, parent_notes, parentage
from tests.support.common_initialisation import group, moved, parent, problem, random_vector
from tests.support.sources import mlp_source
from tests.support.vits import vit_source


def test_distance_and_cosine_are_those_of_the_concatenated_matrices() -> None:
    given = group(2)
    assert given.base is not None
    found, (pair,) = parentage(given.plan, given.sources, given.base)
    names = [f"fc{i}.weight" for i in range(3)]
    base, *own = (
        torch.cat([s.weights[n].flatten() for n in names]).double() for s in (given.base, *given.sources)
    )
    for source, weights in zip(found, own):
        assert source.distance == pytest.approx(float((weights - base).norm() / base.norm()))
        assert source.cosine == pytest.approx(float(torch.cosine_similarity(weights, base, 0)))
        assert (source.longer, source.matrices, source.unrelated) == ((), 3, False)
    assert pair == pytest.approx(float(torch.cosine_similarity(own[0] - base, own[1] - base, 0)))


def test_an_unrelated_network_is_named_with_figures() -> None:
    other = mlp_source("base", [6, 5, 5], 9, input_size=(1, 2, 2))
    given = group(2)
    first, second = parent_notes(given.plan, given.sources, other)
    assert first.startswith(
        "warning: models.base does not seem to be what 't0' was fine-tuned from (relative dist"
    )
    assert "): in 3 of 3 matrices the difference from it is as long as the weights themselves (" in first
    assert first.endswith("). Pass the pretrained weights of the sources")
    assert "'t1'" in second


def test_a_parent_of_zeros_is_infinitely_far() -> None:
    given = group(2)
    assert given.base is not None
    zeros = replace(given.base, weights={n: torch.zeros_like(t) for n, t in given.base.weights.items()})
    assert [own.distance for own in parentage(given.plan, given.sources, zeros)[0]] == [math.inf] * 2
    first = next(parent_notes(given.plan, given.sources, zeros))
    assert "was fine-tuned from (relative distance inf, cosine 0.00): in 3 of 3 matrices" in first


def test_the_parent_gets_its_figures_and_a_single_other_matrix_is_listed() -> None:
    base = parent()
    sources = [moved(base, name, random_vector(base, i, 0.02)) for i, name in enumerate("ab")]
    turned = {**sources[1].weights, "fc1.weight": -base.weights["fc1.weight"]}
    notes = list(parent_notes(group(2).plan, [sources[0], replace(sources[1], weights=turned)], base))
    assert len(notes) == 2
    assert notes[0].startswith("'a' compared with models.base: relative distance 0.0")
    assert notes[1].endswith("; as far from it as from zero: fc1.weight")


def test_sources_with_the_weights_of_the_base_and_sources_of_a_later_parent() -> None:
    base = parent()
    shared = random_vector(base, 1)
    later = moved(base, "later", shared)
    sources = [moved(later, name, random_vector(base, i, 0.01)) for i, name in ((2, "a"), (3, "b"))]
    notes = list(parent_notes(group(2).plan, sources, base))
    assert notes[-1] == (
        "the task vectors of the sources have a cosine of at least 0.99: the tasks are alike, or the sources "
        "share a later parent than models.base"
    )
    given = problem([moved(base, "a", {}), moved(base, "b", shared)], base)
    assert next(iter(parent_notes(given.plan, given.sources, base))) == (
        "'a' has the weights of models.base, so its task vector is zero"
    )


def test_other_architectures_shapes_and_tensors_are_refused_with_every_reason() -> None:
    first = parent()
    assert base_reasons(first, parent()) == []
    assert base_reasons(first, vit_source("class token", 1)) == ["it is a vit, 'base' a mlp"]
    deeper = mlp_source("base", [6, 5, 5, 4], 0, input_size=(1, 2, 2))
    assert base_reasons(first, deeper) == [
        "depth: it has 4, 'base' has 3",
        "it has tensors that 'base' lacks: fc3.bias, fc3.weight",
    ]
    wider = mlp_source("base", [6, 7, 5], 0, input_size=(1, 2, 2))
    assert base_reasons(first, wider) == [
        "its tensors have other shapes than those of 'base': fc1.bias is [7], not [5], "
        "fc1.weight is [7, 6], not [5, 6], fc2.weight is [5, 7], not [5, 5]"
    ]
