"""Weight matching: permutations that bring the weights of the sources closest to each other, without data.

Git Re-Basin (Ainsworth et al., arXiv 2209.04836), algorithm 1 for two sources and algorithm 3 for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsmerge_cli.alignment.matching import match
from fsmerge_cli.alignment.permutation import Permutations, along, permute
from fsmerge_cli.architectures.ports import Constant, Unit
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.problem import Problem

Weights = Mapping[str, Tensor]

MAX_PASSES = 100
"""Passes over all spaces; a pass that improves nothing is the last one."""

MAX_ROUNDS = 10
"""Rounds over more than two sources."""

GAIN = 1e-9
"""Smallest relative gain of an assignment that replaces another."""


def match_weights(problem: Problem, restarts: int = 1) -> list[dict[str, Tensor]]:
    """One permutation per source and space; source 1 keeps its order.

    Each maximises the inner product of the source's weights with those of source 1 (of more than two sources: with
    the mean of the others) by coordinate descent over the spaces in random order. Of several restarts the one with
    the largest inner product is kept.
    """
    weights, plan, k = problem.weights("cpu"), problem.plan, len(problem.sources)
    found: list[dict[str, Tensor]] = [{name: torch.arange(space.merged) for name, space in plan.spaces.items()}]
    for i in range(1, k):
        problem.progress(Event("match weights", i - 1, k - 1))
        found.append(_best(problem, weights[0], weights[i], i, restarts))
    problem.progress(Event("match weights", k - 1, k - 1))
    return _many(problem, weights, found) if k > 2 else found


def _best(problem: Problem, first: Weights, own: Weights, source: int, restarts: int) -> dict[str, Tensor]:
    plan = problem.plan
    same = {name: torch.arange(space.merged) for name, space in plan.spaces.items()}
    tried = [
        descend(plan, first, own, same, generator(problem.seed, "weight matching", source, restart))
        for restart in range(restarts)
    ]
    return max(tried, key=lambda order: inner_product(plan, first, permute(plan, own, order)))


def _many(problem: Problem, weights: Sequence[Weights], found: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Match every source but the first to the mean of the others, until nothing changes."""
    plan, k = problem.plan, len(weights)
    ordered = [permute(plan, own, order) for own, order in zip(weights, found)]
    for step in range(MAX_ROUNDS):
        before = [dict(own) for own in found]
        for i in range(1, k):
            others = [own for j, own in enumerate(ordered) if j != i]
            mean = {name: sum(own[name].float() for own in others) / (k - 1) for name in weights[0]}
            random = generator(problem.seed, "weight matching, all", i, step)
            found[i] = descend(plan, mean, weights[i], found[i], random)  # type: ignore[arg-type]
            ordered[i] = permute(plan, weights[i], found[i])
        if all(torch.equal(old[n], new[n]) for old, new in zip(before, found) for n in old):
            break
    return found


def descend(
    plan: Plan, first: Weights, own: Weights, start: Permutations, random: torch.Generator
) -> dict[str, Tensor]:
    """Permutations of `own` with a locally largest inner product with `first`, by coordinate descent.

    Each assignment is optimal for its space while the others are kept; spaces of attention heads that share an
    order are matched together.
    """
    groups: dict[str, list[str]] = {}
    for name, space in plan.spaces.items():
        groups.setdefault(space.order or name, []).append(name)
    names, current = list(groups), dict(start)
    for _ in range(MAX_PASSES):
        improved = False
        for place in torch.randperm(len(names), generator=random).tolist():
            spaces = groups[names[place]]
            similarity = {name: similarity_of(plan, name, first, own, current) for name in spaces}
            new = match(plan, similarity)
            gains = [_sum(similarity[name], new[name]) - _sum(similarity[name], current[name]) for name in spaces]
            scale = sum(float(similarity[name].abs().max()) for name in spaces)
            if sum(gains) > GAIN * scale:
                current |= new
                improved = True
        if not improved:
            break
    return current


def similarity_of(plan: Plan, space: str, first: Weights, own: Weights, others: Permutations) -> Tensor:
    """S [n, n]: the inner product of everything that unit a of `first` and unit b of `own` write and read.

    The other axes of `own` have the order `others`.
    """
    size = plan.spaces[space].merged
    found = torch.zeros(size, size)
    for name, role in plan.roles.items():
        if isinstance(role, Constant):
            continue
        if isinstance(role, Unit):
            if role.port.space == space and role.trainable and not role.per_head:
                found += _rows(first[name].float(), 0) @ _rows(own[name].float(), 0).T
            continue
        axes = [axis for axis in (role.write, role.read) if axis is not None]
        for axis, ports in axes:
            if all(port.space != space for port in ports):
                continue
            tensor = own[name].float()
            for other, own_ports in axes:
                if other != axis:
                    tensor = along(tensor, other, own_ports, others)
            pairs = zip(ports, first[name].float().chunk(len(ports), axis), tensor.chunk(len(ports), axis))
            for port, one, two in pairs:
                if port.space == space:
                    found += _rows(one, axis) @ _rows(two, axis).T
    return found


def inner_product(plan: Plan, first: Weights, own: Weights) -> float:
    """The sum over all tensors that the permutations order."""
    names = [name for name, role in plan.roles.items() if not isinstance(role, Constant)]
    return sum(float((first[name].double() * own[name].double()).sum()) for name in names)


def _rows(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _sum(similarity: Tensor, order: Tensor) -> float:
    return float(similarity[torch.arange(len(order)), order].double().sum())
