"""Methods for a common initialisation: identities, and slow references on tiny shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.task_vectors.della import Della
from fsmerge_cli.methods.task_vectors.depth import layers
from fsmerge_cli.methods.task_vectors.doge import Doge, shared_directions
from fsmerge_cli.methods.task_vectors.opcm import OPCM
from fsmerge_cli.methods.task_vectors.vectors import kth_largest
from fsmerge_cli.models.plan import compile_plan
from tests.support.common_initialisation import (
    NAMES,
    assert_close,
    fitted,
    group,
    moved,
    parent,
    problem,
    random_vector,
    task_vectors,
)
from tests.support.sources import mlp_source
from tests.support.task_vector_references import REFERENCES, each_entry, elect
from tests.support.vits import vit_source

ONE: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"coefficient": 1.0},
    "ties": {"density": 1.0},
    "dare": {"drop": 0.0, "coefficient": 1.0},
    "breadcrumbs": {"smallest": 0.0, "largest": 1.0, "coefficient": 1.0},
    "della": {"drop": 0.0, "spread": 0.0},
    "lines": {"first": 1.0, "coefficient": 0.0},
    "consensus": {"tasks": 1, "coefficient": 1.0},
    "magnitude": {"density": 1.0, "coefficient": 1.0},
    "ada_merging": {"start": 1.0, "steps": 0},
}
"""Options with which one source whose partner has the pretrained weights is given back."""

COPIES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"coefficient": 1 / 3},
    "ties": {"density": 1.0},
    "dare": {"drop": 0.0, "coefficient": 1 / 3},
    "model_stock": {},
    "breadcrumbs": {"smallest": 0.0, "largest": 1.0, "coefficient": 1 / 3},
    "della": {"drop": 0.0, "spread": 0.0},
    "lines": {"coefficient": 0.0},
    "pcb": {"density": 1.0},
    "consensus": {"coefficient": 1 / 3},
    "magnitude": {"density": 1.0, "coefficient": 1 / 3},
    "ada_merging": {"start": 1 / 3, "steps": 0},
    "fw_merging": {},
}
"""Options with which three copies of a source give that source."""


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_sources_with_the_pretrained_weights_give_these(name: str, norm: str) -> None:
    base = parent(norm)
    solution = fitted(problem([moved(base, "a", {}), moved(base, "b", {})], base), name)
    assert_close(solution.weights, base.weights)
    assert all(torch.equal(U, torch.eye(5)) for U in solution.projectors)


@pytest.mark.parametrize("name", ONE)
def test_one_task_vector_beside_zeros_gives_its_source(name: str) -> None:
    base = parent()
    source = moved(base, "a", random_vector(base, 1))
    found = fitted(problem([source, moved(base, "b", {})], base), name, **ONE[name])
    assert_close(found.weights, source.weights)


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_a_source_give_that_source(name: str) -> None:
    base = parent("batch")
    source = moved(base, "t0", random_vector(base, 1))
    found = fitted(problem([replace(source, name=f"t{i}") for i in range(3)], base), name, **COPIES[name])
    assert_close(found.weights, source.weights)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in NAMES if name != "opcm"])
def test_the_order_of_the_sources_does_not_matter(name: str) -> None:
    given = group()
    other = problem([given.sources[i] for i in (2, 0, 1)], parent())
    images = replace(given.images, task=torch.tensor([1, 2, 0])[given.images.task])  # of the same tasks
    assert_close(fitted(replace(other, images=images), name).weights, fitted(given, name).weights)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_without_the_pretrained_weights_or_of_another_width_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        fitted(replace(group(), base=None), name)
    assert str(error.value) == "this method needs the weights that all sources were fine-tuned from: base=..."
    base = parent()
    sources = [moved(base, "a", {}), mlp_source("b", [6, 5, 4], 1, input_size=(1, 2, 2))]
    with pytest.raises(ConfigError, match="needs sources with the width and number of heads of the merged model"):
        fitted(problem(sources, base), name)


@pytest.mark.full
@pytest.mark.parametrize("name", REFERENCES)
def test_a_method_at_its_defaults_equals_its_slow_reference(name: str) -> None:
    given = group()
    assert given.base is not None
    expected = {
        n: given.base.weights[n].double() + t for n, t in REFERENCES[name](task_vectors(given), given).items()
    }
    found = fitted(given, name).weights
    assert_close(found, expected)
    assert any(not torch.equal(found[n], given.base.weights[n]) for n in expected)


def test_elected_signs_and_drops_of_dare() -> None:
    given = group()
    both = fitted(given, "dare", drop=0.5, combine="elect").weights
    kept = [
        {n: 2 * t * (torch.rand(t.shape, generator=generator(0, "dare", task, n)) >= 0.5) for n, t in own.items()}
        for task, own in zip(given.plan.tasks, task_vectors(given))
    ]
    assert given.base is not None
    expected = {n: given.base.weights[n] + 0.4 * t for n, t in each_entry(kept, elect).items()}
    assert_close(both, expected)
    again, other = fitted(given, "dare").weights, fitted(replace(given, seed=1), "dare").weights
    assert all(torch.equal(again[n], t) for n, t in fitted(given, "dare").weights.items())
    assert not torch.equal(again["fc1.weight"], other["fc1.weight"])


def test_task_weights_are_those_of_the_sum_and_of_the_elected_mean() -> None:
    given, weights = group(2), (3.0, 1.0)
    a, b = task_vectors(given)
    assert given.base is not None
    base = given.base.weights["fc1.weight"].double()
    summed = fitted(given, "task_arithmetic", task_weights=weights).weights["fc1.weight"]
    torch.testing.assert_close(
        summed.double(), base + 0.4 * (1.5 * a["fc1.weight"] + 0.5 * b["fc1.weight"]), rtol=1e-5, atol=1e-6
    )
    found = fitted(given, "ties", task_weights=weights, density=1.0).weights["fc1.weight"]
    pairs = zip(a["fc1.weight"].flatten().tolist(), b["fc1.weight"].flatten().tolist())
    expected = []
    for x, y in pairs:
        total = 3 * x + y
        same = [(w, v) for w, v in ((3, x), (1, y)) if v * total > 0]
        expected.append(sum(w * v for w, v in same) / sum(w for w, _ in same))
    wanted = base + torch.tensor(expected, dtype=torch.float64).reshape(base.shape)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_probabilities_of_della_have_their_mean_and_cannot_leave_the_unit_interval() -> None:
    found = Della().probabilities(torch.tensor([[0.1, -0.4, 0.2, 0.3]]).double())
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.6, 0.7, 0.65]]).double())
    with pytest.raises(ConfigError) as error:
        fitted(group(), "della", drop=0.95)
    assert str(error.value) == (
        "method.drop=0.95 with method.spread=0.2: the probabilities of dropping an entry would leave 0..1. Give a "
        "smaller method.spread."
    )


def test_the_kth_largest_of_several_tensors_is_that_of_all_of_them() -> None:
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(n)).abs() for n in (7, 1, 50)]
    parts[2][10:30] = 0.5
    ordered = torch.cat(parts).sort(descending=True).values
    assert [kth_largest(lambda: iter(parts), k) for k in range(1, 59)] == ordered.tolist()


def test_a_tensor_outside_the_blocks_belongs_to_the_first_or_the_last() -> None:
    sources = [vit_source("class token", seed) for seed in (1, 2)]
    found = layers(compile_plan(sources))
    assert {found[n] for n in found if n.startswith("blocks.0.")} == {0}
    assert {found[n] for n in found if n.startswith("blocks.1.")} == {1}
    assert (found["cls_token"], found["patch_embed.proj.weight"], found["norm.weight"]) == (0, 0, 1)
    assert found.keys() >= sources[0].weights.keys()


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    given = group(2, norm="batch")
    variance = [s.weights["norm0.running_var"] * (i + 1) for i, s in enumerate(given.sources)]
    sources = [replace(s, weights={**s.weights, "norm0.running_var": v}) for s, v in zip(given.sources, variance)]
    found = fitted(replace(given, sources=sources), "task_arithmetic", coefficient=2.0)
    torch.testing.assert_close(found.weights["norm0.running_var"], (variance[0] + variance[1]) / 2)
    assert torch.equal(found.weights["norm0.num_batches_tracked"], sources[0].weights["norm0.num_batches_tracked"])
    assert math.isfinite(float(found.weights["fc0.weight"].sum()))


def test_every_method_of_task_vectors_is_listed_with_its_need() -> None:
    from fsmerge_cli.common import presets

    assert all("models.base" in presets.summary("method", name) for name in NAMES)
    assert all(METHODS[name].one_width for name in NAMES)


def test_the_change_of_doge_leaves_the_shared_directions_alone() -> None:
    matrices = torch.randn(2, 12, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    method = Doge(steps=5, lr=0.1)
    basis = shared_directions(matrices, 6)
    assert basis.shape == (12, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
    scale = method.scales(matrices)
    first = Doge(steps=1, lr=0.1).change(matrices, scale)
    rest = matrices - (scale * matrices).sum(0)
    slope = -2 * scale.sum() * ((matrices * rest).sum(2, keepdim=True) * matrices).sum(0)
    outside = slope - basis @ basis.T @ slope
    torch.testing.assert_close(first, -0.1 * outside.sign(), rtol=0, atol=1e-5)  # the first step of Adam


@pytest.mark.parametrize(("energy", "block"), [(0.0, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (1.0, 4)])
def test_the_block_of_opcm_is_the_smallest_with_its_share_of_the_values(energy: float, block: int) -> None:
    random = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=random).double())[0] for n in (4, 5))
    total = U @ torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]).double()) @ V[:, :4].T  # shares 0.4, 0.7, 0.9, 1
    found = U.T @ OPCM(energy=energy).projected(U @ torch.ones(4, 5).double() @ V.T, total) @ V
    kept = torch.ones(4, 5, dtype=torch.bool)
    kept[:block, :block] = False
    kept.diagonal().fill_(False)
    assert torch.equal(found.abs() > 0.5, kept)
