"""Methods for a common initialisation: identities, and slow references on tiny shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.methods.task_vectors.della import Della
from fsmerge_cli.methods.task_vectors.depth import layers
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
from tests.support.vits import vit_source

Vector = Mapping[str, Tensor]
Reference = Callable[[Sequence[Vector], Problem], dict[str, Tensor]]

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
}
"""Options with which three copies of a source give that source."""


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


@pytest.mark.parametrize("name", NAMES)
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


def trimmed(vector: Vector, density: float) -> dict[str, Tensor]:
    size = sum(t.numel() for t in vector.values())
    ordered = sorted((abs(float(x)) for t in vector.values() for x in t.flatten()), reverse=True)
    least = ordered[round(density * size) - 1]
    return {n: torch.where(t.abs() >= least * (1 - 1e-6), t, 0.0) for n, t in vector.items()}


def each_entry(vectors: Sequence[Vector], rule: Callable[[list[float]], float]) -> dict[str, Tensor]:
    found = {}
    for n, first in vectors[0].items():
        columns = zip(*(v[n].flatten().tolist() for v in vectors))
        found[n] = torch.tensor([rule(list(own)) for own in columns], dtype=torch.float64).reshape(first.shape)
    return found


def elect(own: list[float]) -> float:
    same = [x for x in own if x * sum(own) > 0]
    return sum(same) / len(same) if same else 0.0


def ties(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    return each_entry([trimmed(v, 0.2) for v in vectors], elect)


def model_stock(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    found, k = {}, len(vectors)
    for n in vectors[0]:
        own = [v[n].flatten() for v in vectors]
        pairs = [(i, j) for i in range(k) for j in range(i)]
        a = sum(float(torch.cosine_similarity(own[i], own[j], 0)) for i, j in pairs) / len(pairs)
        share = k * max(a, 0) / (1 + (k - 1) * max(a, 0))
        found[n] = share * sum(v[n] for v in vectors) / k
    return found


def breadcrumbs(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    masked = []
    for vector in vectors:
        masked.append({})
        for n, t in vector.items():
            size = t.numel()
            order = sorted(range(size), key=lambda i, t=t: abs(float(t.flatten()[i])))
            kept = order[int(0.85 * size) : int(0.993 * size)]
            masked[-1][n] = torch.stack([x if i in kept else 0 * x for i, x in enumerate(t.flatten())]).reshape(
                t.shape
            )
    return each_entry(masked, lambda own: 0.3 * sum(own))


def lines(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    depth = {"0": 0.0, "1": 0.5, "2": 1.0}
    return {n: (1 / 3 + 0.5 * depth[n[2]]) * sum(v[n] for v in vectors) for n in vectors[0]}


def della(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    pruned = []
    for task, vector in zip(given.plan.tasks, vectors):
        own = {}
        for n, t in vector.items():
            random = torch.rand(t.shape, generator=generator(given.seed, "della", task, n))
            table = t if t.ndim > 1 else t[None]
            kept = []
            for row, draws in zip(table, random.reshape(table.shape)):
                size = len(row)
                rank = [sum(abs(y) > abs(x) for y in row.tolist()) for x in row.tolist()]
                p = [0.7 - 0.1 + 0.2 * r / size for r in rank]
                kept.append([float(x) / (1 - q) if u >= q else 0.0 for x, q, u in zip(row, p, draws.tolist())])
            own[n] = torch.tensor(kept, dtype=torch.float64).reshape(t.shape)
        pruned.append(own)
    return each_entry(pruned, elect)


def dare(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    kept = [
        {n: t * (torch.rand(t.shape, generator=generator(0, "dare", task, n)) >= 0.9) for n, t in vector.items()}
        for task, vector in zip(given.plan.tasks, vectors)
    ]
    return each_entry(kept, lambda own: 0.4 * sum(own) / (1 - 0.9))


def powers(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric matrix, from its eigenvalues."""
    values, basis = torch.linalg.eigh(matrix)
    return basis * values.clamp(min=0) ** exponent @ basis.T


def in_matrices(vectors: Sequence[Vector], rule: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor]:
    """The rule for the matrices between two layers, the mean for all other tensors."""
    two = ("fc1.weight", "fc2.weight")
    return {
        n: rule([v[n] for v in vectors]) if n in two else sum(v[n] for v in vectors) / len(vectors)
        for n in vectors[0]
    }


def iso_c(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    def rule(
        own: list[Tensor],
    ) -> Tensor:  # U V^T = (M M^T)^(-1/2) M, and the singular values sum to tr (M M^T)^(1/2)
        total = torch.stack(own).sum(0)
        gram = total @ total.T
        return powers(gram, 0.5).trace() / len(gram) * powers(gram, -0.5) @ total

    return in_matrices(vectors, rule)


def tsv(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    def rule(own: list[Tensor]) -> Tensor:  # five rows and three tasks: the strongest direction of each
        right = torch.stack([torch.linalg.eigh(t.T @ t)[1][:, -1] for t in own], 1)
        left = torch.stack([t @ v for t, v in zip(own, right.T)], 1)
        values = left.norm(dim=0)
        left = left / values
        return left @ powers(left.T @ left, -0.5) @ values.diag() @ powers(right.T @ right, -0.5) @ right.T

    return in_matrices(vectors, rule)


def wudi(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    def rule(own: list[Tensor]) -> Tensor:
        m = torch.stack(own).sum(0).requires_grad_(True)
        adam = torch.optim.Adam([m], lr=1e-5)
        for _ in range(300):
            adam.zero_grad()
            torch.stack([((m - t) @ t.T).square().sum() / t.square().sum() for t in own]).sum().backward()
            adam.step()
        assert not torch.equal(m, torch.stack(own).sum(0))
        return m.detach()

    return in_matrices(vectors, rule)


def pcb(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    flat = [torch.cat([t.flatten() for t in v.values()]) for v in vectors]
    k, size = len(flat), len(flat[0])

    def scaled(product: Tensor) -> Tensor:
        return (product - product.min()) / (product.max() - product.min())

    balances = []
    for own in flat:
        between = torch.stack([scaled(own * other).softmax(0) for other in flat]).sum(0)
        balance = (k * scaled(own * own)).softmax(0) * between
        least = balance.sort(descending=True).values[round(0.2 * size) - 1]
        balances.append(torch.where(balance >= least * (1 - 1e-6), balance, 0.0))
    total = torch.stack(balances).sum(0)
    merged = sum(b * own for b, own in zip(balances, flat)) / torch.where(total > 0, total, 1.0)
    parts = torch.as_tensor(merged).split([t.numel() for t in vectors[0].values()])
    return {n: part.reshape(t.shape) for part, (n, t) in zip(parts, vectors[0].items())}


def selfless(own: list[float]) -> float:
    total = sum(own)
    return 0.4 * total if sum(abs(x) >= 0.4 * abs(total - x) for x in own) >= 2 else 0.0


REFERENCES: dict[str, Reference] = {
    "task_arithmetic": lambda vectors, given: each_entry(vectors, lambda own: 0.4 * sum(own)),
    "ties": ties,
    "model_stock": model_stock,
    "breadcrumbs": breadcrumbs,
    "lines": lines,
    "della": della,
    "dare": dare,
    "iso_c": iso_c,
    "tsv": tsv,
    "wudi": wudi,
    "pcb": pcb,
    "consensus": lambda vectors, given: each_entry(vectors, selfless),
    "magnitude": lambda vectors, given: each_entry([trimmed(v, 0.2) for v in vectors], lambda own: 0.4 * sum(own)),
}


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
