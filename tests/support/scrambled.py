"""Networks of the same function with other weights: streams and heads turned, units permuted, norms moved."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli.alignment.orthogonal import Stream, takes_turns, turnable_stream, turned_maps
from fsmerge_cli.alignment.permutation import random_permutations
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold, fold_head


def random_orthogonal(n: int, random: torch.Generator, centred: bool = False) -> Tensor:
    """A random orthogonal matrix, fp64; centred: one that keeps the vector of ones."""
    if not centred:
        return torch.linalg.qr(torch.randn(n, n, generator=random, dtype=torch.float64))[0]
    rest = torch.randn(n, n - 1, generator=random, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), rest], 1))[0][:, 1:]
    ones = torch.full((n, n), 1 / n, dtype=torch.float64)
    return ones + basis @ random_orthogonal(n - 1, random) @ basis.T


def random_turns(plan: Plan, seed: int, stream: Stream | None) -> dict[str, Tensor]:
    """By space, a random map that changes no function: orthogonal where possible, else a permutation."""
    random = torch.Generator().manual_seed(seed)
    orders, found = random_permutations(plan, 0, random), {}
    for name, space in plan.spaces.items():
        T = torch.eye(space.merged, dtype=torch.float64)[orders[name]]
        if stream is not None and name == stream.space:
            T = random_orthogonal(space.merged, random, stream.centred)
        elif takes_turns(plan, name):
            heads = space.heads[0] if space.heads else 1
            T = torch.block_diag(*(random_orthogonal(space.merged // heads, random) for _ in range(heads))) @ T
        found[name] = T
    return found


def scrambled(source: Source, name: str, seed: int) -> Source:
    """A source with the same logits, and weights that do not look like those of `source`."""
    plan = compile_plan([source, replace(source, name=f"{source.name} again")])
    stream, weights = turnable_stream(plan), [dict(source.weights)] * 2
    maps = turned_maps(plan, weights, [random_turns(plan, seed, stream)] * 2, (1.0, 0.0), stream)
    head = source.head and fold_head(source.head, maps.read(plan.features, 0).dense())
    return replace(source, name=name, weights=fold(plan, maps, weights), head=head)
