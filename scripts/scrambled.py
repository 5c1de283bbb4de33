"""Networks of the same function with other weights, and what methods keep of a group with such a source.

    python -m scripts.scrambled     # prints the table: per cent of the sources' accuracy, before and after

Streams and heads are turned, units permuted, and norms become part of weights (`scrambled`), or as MergeLock does
it, only units are permuted and heads turned (`locked`). The table is that of `+models=shared_parent_pair`.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli import merge
from fsmerge_cli.alignment.closed_form.outline import outline
from fsmerge_cli.alignment.orthogonal import Stream, takes_turns, turnable_stream, turned_maps
from fsmerge_cli.alignment.permutation import random_permutations
from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.common import presets
from fsmerge_cli.common.progress import silent
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.request import source_entries
from fsmerge_cli.supernet.fold import fold, fold_head

SHOWN = (
    "average",
    "task_arithmetic",
    "ties",
    "tsv",
    "weight_matching",
    "activation_matching",
    "cca",
    "orthogonal_matching",
    "zipit",
    "regmean",
    "fs_closed_form",
)


def random_orthogonal(n: int, random: torch.Generator, centred: bool = False) -> Tensor:
    """A random orthogonal matrix, fp64; centred: one that keeps the vector of ones."""
    if not centred:
        return torch.linalg.qr(torch.randn(n, n, generator=random, dtype=torch.float64))[0]
    rest = torch.randn(n, n - 1, generator=random, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), rest], 1))[0][:, 1:]
    ones = torch.full((n, n), 1 / n, dtype=torch.float64)
    return ones + basis @ random_orthogonal(n - 1, random) @ basis.T


def random_turns(plan: Plan, seed: int, stream: Stream | None, keep: str = "") -> dict[str, Tensor]:
    """By space, a random map that changes no function: orthogonal where possible, else a permutation.

    keep: a space that stays as it is.
    """
    random = torch.Generator().manual_seed(seed)
    orders, found = random_permutations(plan, 0, random), {}
    for name, space in plan.spaces.items():
        T = torch.eye(space.merged, dtype=torch.float64)[orders[name]]
        if stream is not None and name == stream.space:
            T = random_orthogonal(space.merged, random, stream.centred)
        elif takes_turns(plan, name):
            heads = space.heads[0] if space.heads else 1
            T = torch.block_diag(*(random_orthogonal(space.merged // heads, random) for _ in range(heads))) @ T
        found[name] = torch.eye(space.merged, dtype=torch.float64) if name == keep else T
    return found


def scrambled(source: Source, name: str, seed: int) -> Source:
    """A source with the same logits, and weights that do not look like those of `source`."""
    plan = compile_plan([source, replace(source, name=f"{source.name} again")])
    stream, weights = turnable_stream(plan), [dict(source.weights)] * 2
    maps = turned_maps(plan, weights, [random_turns(plan, seed, stream)] * 2, (1.0, 0.0), stream)
    head = source.head and fold_head(source.head, maps.projector(plan, 0))
    return replace(source, name=name, weights=fold(plan, maps, weights), head=head)


def locked(source: Source, seed: int) -> Source:
    """A source as MergeLock scrambles it: hidden units reordered, heads reordered and turned, the stream kept.

    Its features and its head are those of `source`.
    """
    plan = compile_plan([source, replace(source, name=f"{source.name} again")])
    found = outline(plan)
    if found is None:
        raise TypeError(f"a {plan.family.name} has no residual stream")
    turns = random_turns(plan, seed, None, keep=found.stream)
    maps = turned_maps(plan, [dict(source.weights)] * 2, [turns] * 2, (1.0, 0.0), None)
    return replace(source, weights=fold(plan, maps, [dict(source.weights)] * 2))


def main() -> None:
    """Merge the group with every method, as it is and with source 2 scrambled."""
    group = "shared_parent_pair"
    first, second = load_all(source_entries(group), silent)
    base, data = presets.load("models", group)["base"], {"name": "glyphs", "images_per_task": 50}
    for method in SHOWN:
        kept = []
        for own in (second, locked(second, 1)):
            found = merge([first, own], base=base, method=method, data=data, hardware="cpu").scores
            pairs = [(found["merged"].tasks[name], found[name].tasks[name]) for name in (first.name, own.name)]
            kept.append(100 * sum(mine.top1 / alone.top1 for mine, alone in pairs) / len(pairs))
        sys.stdout.write(f"{method:<20} {kept[0]:6.1f} {kept[1]:6.1f}\n")


if __name__ == "__main__":
    main()
