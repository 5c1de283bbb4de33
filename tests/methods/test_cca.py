"""CCA merging: its eigenvalue problem, shuffled copies, and values mixed by any invertible map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fsmerge_cli.alignment.canonical import canonical_maps, takes_linear_maps
from fsmerge_cli.methods.cca import CCA
from fsmerge_cli.models.plan import compile_plan
from tests.support.shuffled import assert_the_function_of_all, problem_of, shuffled, source_of

FULL = pytest.mark.full


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two related sets of activations, [500, n] each."""
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(500, n, generator=random, dtype=torch.float64)
    noise = torch.randn(2, 500, n, generator=random, dtype=torch.float64)
    mix = torch.randn(2, n, n, generator=random, dtype=torch.float64)
    return (shared + 0.5 * noise[0]) @ mix[0], (shared + 0.5 * noise[1]) @ mix[1]


def covariances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x - x.mean(0), y - y.mean(0)
    return x.T @ x / len(x), x.T @ y / len(x), y.T @ y / len(x)


def test_the_map_is_that_of_the_canonical_projections() -> None:
    n, ridge = 4, 0.05
    one, cross, two = covariances(*samples(n))
    A, B = (C.numpy() + ridge * float(C.diagonal().mean()) * np.eye(n) for C in (one, two))
    values, first = np.linalg.eig(np.linalg.solve(A, cross.numpy()) @ np.linalg.solve(B, cross.numpy().T))
    first = first / np.sqrt(np.einsum("ij,ik,kj->j", first, A, first))
    second = np.linalg.solve(B, cross.numpy().T) @ first / np.sqrt(values)
    T, inverse = canonical_maps(one, cross, two, ridge, torch.arange(n))
    torch.testing.assert_close(T, torch.from_numpy((second @ np.linalg.inv(first)).T), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(T @ inverse, torch.eye(n, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(T @ torch.from_numpy(B) @ T.T, torch.from_numpy(A))


def test_an_invertible_map_of_the_units_is_undone() -> None:
    x, _ = samples(5)
    A = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    T, _ = canonical_maps(*covariances(x, x @ A.T), 1e-12, torch.arange(5))
    torch.testing.assert_close(T, torch.linalg.inv(A), atol=1e-4, rtol=1e-4)


def test_what_does_not_correlate_follows_the_permutation() -> None:
    """With one active unit, all other directions are left open by the correlations."""
    one = torch.zeros(4, 4, dtype=torch.float64)
    one[0, 0] = 1.0
    order = torch.tensor([2, 0, 3, 1])
    moved = torch.eye(4, dtype=torch.float64)[order]
    T, _ = canonical_maps(one, one @ moved, moved.T @ one @ moved, 0.1, order)
    torch.testing.assert_close(T, moved)
    silent = torch.zeros(4, 4, dtype=torch.float64)
    torch.testing.assert_close(canonical_maps(silent, silent, silent, 0.1, order)[0], moved)


@pytest.mark.parametrize(
    "kind",
    [
        "mlp",
        "class token",
        *(pytest.param(kind, marks=FULL) for kind in ("mlp, batch norm", "q/k norm", "LayerScale", "resnet")),
        pytest.param("attention and MLP norms", marks=FULL),
        pytest.param("rotary, registers (DINOv3)", marks=FULL),
    ],
)
def test_shuffled_copies_merge_to_the_function(kind: str) -> None:
    problem = shuffled(source_of(kind), 2)
    assert_the_function_of_all(problem, CCA(task_weights=(1.0, 2.0, 3.0)).fit(problem))


@pytest.mark.full
def test_values_mixed_by_any_invertible_map_merge_to_the_function() -> None:
    """No permutation undoes it: values are linear, so the analysis does."""
    first, random = source_of("class token"), torch.Generator().manual_seed(3)
    weights = {name: t.clone() for name, t in first.weights.items()}
    for block in range(2):
        A = torch.block_diag(*(torch.linalg.qr(torch.randn(4, 4, generator=random))[0] for _ in range(3)))
        A = A * torch.linspace(0.5, 2, 12)[:, None]  # type: ignore[no-untyped-call]
        for leaf in ("weight", "bias"):
            name = f"blocks.{block}.attn.qkv.{leaf}"
            weights[name] = torch.cat([weights[name][:24], A @ weights[name][24:]])
        name = f"blocks.{block}.attn.proj.weight"
        weights[name] = weights[name] @ torch.linalg.inv(A)
    problem = problem_of(first, replace(first, name="mixed", weights=weights))
    assert_the_function_of_all(problem, CCA(ridge=1e-9).fit(problem))


def test_the_spaces_that_are_mapped() -> None:
    kinds = {
        "class token": {"v0", "v1", "h0", "h1"},
        "attention and MLP norms": set(),
        "rotary, registers (DINOv3)": {"v0", "v1", "h0", "h1"},
    }
    for kind, expected in kinds.items():
        plan = compile_plan([source_of(kind, 1), source_of(kind, 2)])
        assert {name for name in plan.spaces if takes_linear_maps(plan, name)} == expected
    plan = compile_plan([source_of("mlp", 1), source_of("mlp", 2)])
    assert all(takes_linear_maps(plan, name) for name in plan.spaces)


def test_heads_are_never_mixed_and_facts_count_the_spaces() -> None:
    problem = problem_of(source_of("class token", 1), source_of("class token", 2))
    solution = CCA().fit(problem)
    assert solution.maps is not None
    assert solution.facts == {"spaces_mapped": 4.0, "spaces_permuted": 3.0}
    for port in problem.plan.writes:
        if port.space.startswith(("qk", "v")):
            parts = solution.maps.write(port, 1).dense().reshape(3, 4, 3, 4).abs().sum((1, 3))
            assert (parts > 0).sum(1).tolist() == [1, 1, 1]
