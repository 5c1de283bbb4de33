"""The folds for a GPU compared with the folds by source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.supernet.fold import PreparedFold, fold
from fsmerge_cli.supernet.joined_fold import fold_full, fold_joined, fold_joined_fused
from fsmerge_cli.supernet.low_rank_fold import fold_low_rank
from fsmerge_cli.supernet.maps import Full, Map
from tests.supernet.test_fold import random_maps
from tests.supernet.test_low_rank_fold import KINDS, random_map
from tests.supernet.test_network import double, pair
from tests.support.vits import QUICK, VARIANTS

SIZES = {  # parts of the output; number of sources; (o, m) per part; merged (o', m')
    "one size": (1, 2, (5, 4), (5, 4)),
    "three parts, three sources": (3, 3, (5, 4), (5, 4)),
    "wider": (2, 2, (3, 6), (7, 8)),
    "narrower": (2, 3, (5, 6), (3, 2)),
}
N = 2
Case = tuple[list[Tensor], list[Any], list[Any]]


def case(name: str, merge_kind: str, unmerge_kind: str) -> Case:
    parts, k, (o, m), (rows, cols) = SIZES[name]
    random = torch.Generator().manual_seed(7)
    stacks = [torch.randn(N, parts * o, m, generator=random, dtype=torch.float64) for _ in range(k)]

    def different(kind: str, n: int, *size: int) -> list[Map]:
        return [
            random_map(kind, n, *size).each(lambda t, i=i: (t.detach() + i).requires_grad_()) for i in range(k)
        ]

    return stacks, different(merge_kind, N * parts, rows, o), different(unmerge_kind, N, m, cols)


def joined(
    stacks: list[Tensor], merge: list[Any], unmerge: list[Any]
) -> tuple[list[Tensor], list[Any], list[Any]]:
    parts = len(merge[0].diagonal) // N

    def together(maps: list[Any], repeats: int) -> Any:
        values = {n: torch.stack([m.tensors()[n] for m in maps], 1) for n in maps[0].tensors()}
        return replace(maps[0], **{n: t.repeat_interleave(repeats, 0) for n, t in values.items()})

    W = torch.stack([s.reshape(N * parts, -1, s.shape[-1]) for s in stacks], 1)
    return [W], [together(merge, 1)], [together(unmerge, parts)]


def value_and_gradients(function: Any, made: Case, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    (value,) = function(*joined(*made)) if function is not fold_low_rank else (function(*made),)
    value = value.reshape(N, -1, value.shape[-1])
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(2)).to(value.dtype)
    return value, *torch.autograd.grad((value * weight).sum(), leaves)


@pytest.mark.parametrize("function", [fold_joined, fold_joined_fused])
@pytest.mark.parametrize("unmerge_kind", KINDS)
@pytest.mark.parametrize("merge_kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_value_and_gradients_equal_those_of_the_fold_by_source(
    name: str, merge_kind: str, unmerge_kind: str, function: Any
) -> None:
    made = case(name, merge_kind, unmerge_kind)
    leaves = [t for m in [*made[1], *made[2]] for t in m.tensors().values()]
    expected = value_and_gradients(fold_low_rank, made, leaves)
    torch.testing.assert_close(value_and_gradients(function, made, leaves), expected)


def low_rank(**kind: Any) -> tuple[Case, list[Tensor]]:
    stacks, merge, unmerge = case("three parts, three sources", "low_rank", "low_rank")
    maps = [[m.each(lambda t: t.detach().to(**kind).requires_grad_()) for m in side] for side in (merge, unmerge)]
    made = [s.to(**kind) for s in stacks], maps[0], maps[1]
    return made, [t for side in maps for m in side for t in m.tensors().values()]


@pytest.mark.parametrize("function", [fold_joined, fold_joined_fused])
def test_in_bf16_the_difference_is_rounding_and_ranks_are_padded(function: Any) -> None:
    made, leaves = low_rank(dtype=torch.float32)
    exact = value_and_gradients(fold_low_rank, made, leaves)
    narrow: Case = ([s.bfloat16() for s in made[0]], made[1], made[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = value_and_gradients(fold_low_rank, narrow, leaves)
        found = value_and_gradients(function, narrow, leaves)
    assert found[0].dtype == torch.bfloat16
    assert [t.shape for t in found] == [t.shape for t in exact]  # of the leaves, without padding
    for value, alone, true in zip(found, expected, exact):
        assert (value.float() - true).norm() <= 1.5 * (alone.float() - true).norm() + 1e-3 * true.norm()


@pytest.mark.slow
def test_the_compiled_fold_equals_the_eager_one() -> None:
    made, leaves = low_rank(dtype=torch.float32)
    compiled = Hardware(device="cpu", compile=True).compiled(fold_joined_fused)
    torch.testing.assert_close(
        value_and_gradients(compiled, made, leaves), value_and_gradients(fold_joined, made, leaves)
    )


@pytest.mark.parametrize("parts", [1, 3])
def test_full_maps_are_summed_inside_the_products(parts: int) -> None:
    random = torch.Generator().manual_seed(1)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    stacks = [values(N, parts * 4, 5) for _ in range(3)]
    merge = [Full(6, 4, values(N * parts, 6, 4)) for _ in range(3)]
    unmerge = [Full(5, 7, values(N, 5, 7)) for _ in range(3)]
    expected = torch.zeros(N, parts, 6, 7, dtype=torch.float64)
    for W, M, U in zip(stacks, merge, unmerge):
        M_parts, W_parts = M.matrix.unflatten(0, (N, parts)), W.unflatten(1, (parts, 4))
        expected += torch.einsum("npab,npbc,ncd->npad", M_parts, W_parts, U.matrix)
    torch.testing.assert_close(fold_full(stacks, merge, unmerge), expected.flatten(1, 2))


CASES = [(v, "low_rank") for v in VARIANTS] + [
    (v, s) for v in sorted(QUICK) for s in ("diagonal", "full", "heads")
]


@pytest.mark.parametrize(
    ("variant", "structure"),
    [pytest.param(v, s, marks=[pytest.mark.full] if v not in QUICK or s == "full" else []) for v, s in CASES],
)
def test_a_prepared_fold_of_all_sources_equals_the_fold_of_single_tensors(variant: str, structure: str) -> None:
    plan, sources = pair(variant)
    maps = random_maps(plan, sources, structure)
    weights = [double(s) for s in sources]
    prepared = PreparedFold(plan, weights, "cpu", batched=True, maps=maps.stacked())
    assert bool(prepared._joined) == (structure in ("diagonal", "low_rank", "heads"))
    torch.testing.assert_close(prepared(maps.stacked(), maps.units()), fold(plan, maps, weights))
    some = {name for name in plan.roles if name.startswith("blocks.1.")}
    assert prepared(maps.stacked(), maps.units(), some).keys() == some
