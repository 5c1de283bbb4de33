"""Orthogonal matching: its least squares, turns that change no function, and scrambled copies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsmerge_cli.alignment.orthogonal import procrustes, takes_turns, turnable_stream, turned_maps
from fsmerge_cli.methods.activation_matching import ActivationMatching
from fsmerge_cli.methods.orthogonal_matching import OrthogonalMatching, turn_error
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.training.teachers import network
from scripts.scrambled import random_turns, scrambled
from tests.support.shuffled import assert_the_function_of_all, problem_of, shuffled, source_of
from tests.support.vits import VARIANTS

FULL = pytest.mark.full

PERMUTED = {
    "pre-norm (CLIP)",
    "CLIP quick-GELU with projection",
    "embedding norm",
    "SwiGLU (AIMv2)",
    "maximum pooling",
    "rotary, pre-norm (Perception Encoder)",
    "rotary, attention pooling (PE core)",  # with the same norm before its blocks
}
"""Variants with an operation on single units of the stream."""


def orthogonal(n: int, seed: int) -> Tensor:
    random = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(random)[0]


def test_the_turn_is_the_best_of_all() -> None:
    """Of two dimensions all rotations and reflections are tried."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 50, 2, generator=random, dtype=torch.float64)
    y = y + x @ torch.tensor([[0.3, 1.0], [-1.0, 0.3]], dtype=torch.float64)
    angles = torch.linspace(0, 2 * torch.pi, 3601, dtype=torch.float64)
    c, s = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([c, -s, s, c], 1), torch.stack([c, s, s, -c], 1)]).reshape(-1, 2, 2)
    errors = (x[None] - y[None] @ turns.mT).square().sum((1, 2))
    T = procrustes(x.T @ y, torch.eye(2))
    assert float((x - y @ T.T).square().sum()) <= float(errors.min()) + 1e-4
    torch.testing.assert_close(T, turns[errors.argmin()], atol=2e-3, rtol=0)


@pytest.mark.parametrize("centred", [False, True])
def test_a_turn_is_undone_and_the_mean_is_kept(centred: bool) -> None:
    n = 6
    Q, ones = orthogonal(n, 1), torch.ones(n, dtype=torch.float64)
    x = torch.randn(40, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if centred:
        basis = torch.linalg.qr(torch.cat([ones[:, None], orthogonal(n, 3)[:, 1:]], 1))[0]
        Q = basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), orthogonal(n - 1, 4)) @ basis.T
        x = x - x.mean(1, keepdim=True)
    T = procrustes(x.T @ (x @ Q.T), torch.eye(n), centred)
    torch.testing.assert_close(T, Q.T, atol=1e-4, rtol=0)
    if centred:
        torch.testing.assert_close(T @ ones, ones)
    torch.testing.assert_close(procrustes(torch.zeros(n, n), torch.eye(n)[[1, 0, *range(2, n)]]), torch.eye(n)[
        [1, 0, *range(2, n)]].double())  # fmt: skip


OTHERS = [pytest.param(kind, marks=FULL) for kind in VARIANTS if kind != "class token"]
TURNED = [own for own in OTHERS if own.values[0] not in PERMUTED]


@pytest.mark.parametrize("kind", ["class token", *OTHERS])
def test_turns_of_stream_and_heads_change_no_function(kind: str) -> None:
    problem = problem_of(source_of(kind, 1), source_of(kind, 2))
    stream = turnable_stream(problem.plan)
    if kind in PERMUTED:
        turns = [random_turns(problem.plan, seed, stream) for seed in (3, 4)]
        assert stream is None or turn_error(problem, turns, stream) > 1e-2
        return
    assert stream is not None
    turns = [random_turns(problem.plan, seed, stream) for seed in (3, 4)]
    assert turn_error(problem, turns, stream) < 1e-5
    moved = turned_maps(problem.plan, problem.weights("cpu"), turns, (0.0, 1.0), stream)
    assert float((moved.write(problem.plan.writes[0], 1).dense() - torch.eye(1)).abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["class token", *TURNED])
def test_scrambled_copies_merge_to_the_function(kind: str) -> None:
    first = source_of(kind)
    problem = problem_of(first, *(scrambled(first, f"c{seed}", seed) for seed in (5, 6)))
    solution = OrthogonalMatching(task_weights=(1.0, 2.0, 3.0)).fit(problem)
    assert_the_function_of_all(problem, solution)
    assert solution.facts["stream_turned"] == 1.0
    with pytest.raises(AssertionError):  # permutations do not undo it
        assert_the_function_of_all(problem, ActivationMatching().fit(problem))


@pytest.mark.parametrize(
    "kind",
    [
        "mlp",
        *(pytest.param(k, marks=FULL) for k in ("mlp, batch norm", "resnet", "pre-norm (CLIP)")),
    ],
)
def test_what_cannot_be_turned_is_permuted(kind: str) -> None:
    problem = shuffled(source_of(kind), 2)
    solution = OrthogonalMatching().fit(problem)
    assert_the_function_of_all(problem, solution)
    assert solution.facts["stream_turned"] == 0.0


@pytest.mark.full
def test_a_turn_that_would_change_a_source_is_not_taken() -> None:
    """The maximum over positions acts on single units, which no table states."""
    problem = problem_of(source_of("maximum pooling", 1), source_of("maximum pooling", 2))
    assert turnable_stream(problem.plan) is not None
    assert OrthogonalMatching().fit(problem).facts["stream_turned"] == 0.0


def test_the_norms_of_the_merged_network_are_standard_and_the_maps_fold_the_sources() -> None:
    problem = problem_of(source_of("class token", 1), source_of("class token", 2))
    solution = OrthogonalMatching().fit(problem)
    for name, tensor in solution.weights.items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
    assert solution.maps is not None
    assert solution.facts == {"spaces_turned": 5.0, "spaces_permuted": 2.0, "stream_turned": 1.0}
    assert {n for n in problem.plan.spaces if takes_turns(problem.plan, n)} == {"qk0", "qk1", "v0", "v1"}


def test_heads_are_not_mixed() -> None:
    problem = problem_of(source_of("class token", 1), source_of("class token", 2))
    maps = OrthogonalMatching().fit(problem).maps
    assert maps is not None
    for port in problem.plan.writes:
        if port.space.startswith(("qk", "v")):
            parts = maps.write(port, 1).dense().reshape(3, 4, 3, 4).abs().sum((1, 3))
            assert (parts > 0).sum(1).tolist() == [1, 1, 1]


def test_a_copy_with_other_norms_is_the_same_network() -> None:
    """A scrambled copy has the features of its source, and other weights."""
    first = source_of("LayerScale")
    plan = compile_plan([first, replace(first, name="b")])
    copy = scrambled(first, "copy", 3)
    pixels = problem_of(first, copy).images.images
    assert first.head is not None
    assert copy.head is not None
    expected, found = first.head(network(first)(pixels)), copy.head(network(copy)(pixels))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert all(not torch.allclose(copy.weights[n], first.weights[n], atol=1e-3) for n in plan.roles if "qkv" in n)
