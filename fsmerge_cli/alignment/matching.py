"""Activation matching: reorder the units of every source to match source 1, with attention heads kept whole.

One assignment per space on the correlations of activations. Spaces of attention heads are matched with an inner
assignment for every pair of heads and an outer one over heads (Verma & Elbayad, arXiv 2403.00986; Git Re-Basin,
arXiv 2209.04836, for plain spaces).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fsmerge_cli.alignment.permutation import Permutations, blocks, permute, shares_inner_order
from fsmerge_cli.alignment.statistics import correlations, unmerging
from fsmerge_cli.architectures.ports import Port
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.problem import Problem, Solution, Stage
from fsmerge_cli.training.teachers import network


def require_one_width(plan: Plan, method: str) -> None:
    """Raise ConfigError for sources whose widths or numbers of heads differ from the merged model's."""
    if not plan.same_shape:
        raise ConfigError(
            f"method={method} needs sources with the width and number of heads of the merged model. "
            "Take method=fs_merge or method=kd, which do not."
        )


def require_images(problem: Problem, method: str) -> None:
    """Raise DataError for a problem without images."""
    if len(problem.images) == 0:
        raise DataError(
            f"method={method} needs unlabelled images of the tasks. Pass data=... with data.images_per_task of 1 "
            "or more."
        )


def require_heads(problem: Problem, method: str) -> None:
    """Raise ConfigError for a source without a head."""
    if without := [source.name for source in problem.sources if source.head is None]:
        raise ConfigError(
            f"method={method} needs predictions, and {', '.join(without)} has no head. Pass its head "
            "(models.sources.N.head=...), or take method=average."
        )


def similarities(problem: Problem, first: bool = False) -> dict[str, Tensor]:
    """Correlations between the units of all sources on all images, by space: [k size, k size].

    first: only between the units of source 1 and all units, [size, k size].
    """
    networks = [network(s, problem.device) for s in problem.sources]
    batch = problem.hardware.eval_batch
    return correlations(
        problem.plan, networks, problem.images.images, batch, problem.device, problem.progress, first
    )


def match_all(
    plan: Plan,
    found: Mapping[str, Tensor],
    k: int,
    progress: Progress = silent,
    heads: Sequence[Mapping[str, Tensor]] | None = None,
) -> list[dict[str, Tensor]]:
    """One permutation per source and space that aligns the source to source 1, which keeps its order.

    heads: orders of heads of every source that are given, as in `match`.
    """
    sizes = {name: space.merged for name, space in plan.spaces.items()}
    matched: list[dict[str, Tensor]] = [{name: torch.arange(size) for name, size in sizes.items()}]
    for i in range(1, k):
        cross = {name: c[: sizes[name], i * sizes[name] : (i + 1) * sizes[name]] for name, c in found.items()}
        report = partial(_report, progress, (i - 1) * len(sizes), (k - 1) * len(sizes))
        matched.append(match(plan, cross, report, heads[i] if heads else {}))
    return matched


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(Event("match units", before + done, total))


def match(
    plan: Plan,
    similarity: Mapping[str, Tensor],
    report: Callable[[int], None] = lambda done: None,
    heads: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Permutations p that maximise sum_j similarity[j, p[j]] in every space, with heads kept whole.

    similarity: by space, [size, size], with the units of source 1 as rows; spaces that share an order of heads
    stand together. report: is called with the number of matched spaces. heads: orders of heads that are given, by
    the space that leads.
    """
    permutations: dict[str, Tensor] = {}
    orders: dict[str, Tensor] = dict(heads or {})
    leading_first = sorted(similarity, key=lambda name: plan.spaces[name].order != name)
    for done, name in enumerate(leading_first):
        report(done)
        space = plan.spaces[name]
        if space.heads is None or space.order is None:
            permutations[name] = assignment(similarity[name])
            continue
        H = space.heads[0]
        d = space.merged // H
        pairs = similarity[name].reshape(H, d, H, d).permute(0, 2, 1, 3)  # [H of source 1, H, d, d]
        if space.rotary:  # a rotation acts on fixed pairs of units
            inner = torch.arange(d).expand(H, H, d)
        elif shares_inner_order(plan, name):
            inner = assignment(_paired(pairs, orders.get(space.order)).sum(0)).expand(H, H, d)
        else:
            inner = torch.stack([torch.stack([assignment(pairs[g, h]) for h in range(H)]) for g in range(H)])
        if space.order not in orders:
            scores = pairs.gather(3, inner[..., None]).sum((2, 3))
            orders[space.order] = assignment(scores)
        order = orders[space.order]
        permutations[name] = blocks(order, inner[torch.arange(H), order])
    report(len(leading_first))
    return permutations


def assignment(similarity: Tensor) -> Tensor:
    """Columns p that maximise sum_j similarity[j, p[j]] (scipy's Hungarian solver)."""
    _, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns)


@dataclass(frozen=True)
class Aligned:
    """A problem whose sources, heads included, are reordered to match source 1.

    back: one map [d, d] per source, from the reordered features to the original ones. permutations: of every
    source, by space; empty without reordering.
    """

    problem: Problem
    back: tuple[Tensor, ...]
    permutations: tuple[dict[str, Tensor], ...] = ()


def aligned(problem: Problem, how: str) -> Aligned:
    """The problem with its sources reordered to match source 1 (`activations`) or unchanged (`none`)."""
    identity = torch.eye(problem.plan.arch.features, device=problem.device)
    if how == "none":
        return Aligned(problem, (identity,) * len(problem.sources))
    return reorder_sources(problem, match_to_first(problem))


def match_to_first(problem: Problem) -> list[dict[str, Tensor]]:
    """The permutations that align the units of every source to source 1."""
    own = similarities(problem.in_fp64(), first=True)
    return match_all(problem.plan, own, len(problem.sources), problem.progress)


def reorder_sources(problem: Problem, permutations: Sequence[dict[str, Tensor]]) -> Aligned:
    """The problem with reordered sources; source 1 keeps its order."""
    others = zip(problem.sources[1:], permutations[1:])
    sources = [problem.sources[0], *(reordered(problem.plan, s, p) for s, p in others)]
    ordered = replace(problem, sources=sources)
    return Aligned(ordered, tuple(back_to_sources(problem, permutations)), tuple(permutations))


FALLBACK_START: Literal["aligned"] = "aligned"
"""Used instead of start=matched where the sources cannot be reordered."""


def can_match(plan: Plan, images: int) -> bool:
    """Whether start=matched can reorder: sources of the merged model's shape, and at least one image."""
    return plan.same_shape and images > 0


def fit_matched(
    problem: Problem,
    fit: Callable[[Problem, Literal["average", "aligned"]], Solution],
    matcher: Callable[[Problem], Sequence[dict[str, Tensor]]] | None = None,
) -> Solution:
    """Run `fit(problem, start)` from the mean of the reordered sources; a solution for the original sources.

    matcher: what finds the permutations, by source and space (None: `match_to_first`).
    All processes use the permutations of the first one, and the state of the trainings contains them: rounding can
    change the order of similar units, and the trained weights fit only the order they were trained with.
    """
    if not can_match(problem.plan, len(problem.images)):
        return fit(problem, FALLBACK_START)
    k, snapshots, spaces = len(problem.sources), problem.snapshots, problem.plan.spaces
    saved = snapshots.saved_context()
    found: Sequence[dict[str, Tensor]]
    if saved:
        found = [{n: saved[f"{i}.{n}"] for n in spaces} for i in range(k)]
    else:
        snapshots.context = {}  # a matcher that trains has states of its own, without permutations
        found = (matcher or match_to_first)(problem)
    permutations = tuple({name: problem.world.broadcast(p) for name, p in own.items()} for own in found)
    snapshots.context = {f"{i}.{name}": p for i, own in enumerate(permutations) for name, p in own.items()}
    ordered = reorder_sources(problem, permutations)
    solution = fit(ordered.problem, "average")
    projectors = tuple(B @ U.to(B.device) for B, U in zip(ordered.back, solution.projectors))
    stages = solution.stages
    if solution.maps is not None:  # they fold the reordered sources, which only a stage can record
        stages = (Stage(problem.plan, solution.maps, (), solution.weights),)
    originals = problem.weights("cpu")
    stages = tuple(replace(stage, sources=originals, permutations=permutations) for stage in stages)
    return replace(solution, projectors=projectors, maps=None, stages=stages, permutations=permutations)


def reordered(plan: Plan, source: Source, permutations: Permutations) -> Source:
    """A source with permuted units; its head is permuted accordingly."""
    weights, head = permute(plan, source.weights, permutations), source.head
    if head is not None:
        features = plan.feature_order(permutations)
        if head.projector is None:
            head = replace(head, weight=head.weight[:, features])
        else:
            head = replace(head, projector=head.projector[:, features])
    return replace(source, weights=weights, head=head)


RIDGE = 1e-2
"""Ridge of the least squares for start=aligned, relative to the mean square of the activations."""


def unmerging_start(problem: Problem, features_only: bool = False) -> dict[tuple[Port, int], Tensor]:
    """U [d_i, d'] by port and source that best maps source 1's activations to those of the other sources.

    Fitted on all images. features_only: only at the port of the heads. Empty where the merged model does not have
    source 1's shape, or without images.
    """
    plan = problem.plan
    if any(space.merged != space.sources[0] for space in plan.spaces.values()) or not len(problem.images):
        return {}
    device, batch = problem.in_fp64().device, problem.hardware.eval_batch
    networks = [network(source, device) for source in problem.sources]
    ports = plan.feature_ports if features_only else None
    return unmerging(plan, networks, problem.images.images, batch, device, RIDGE, ports)


def back_to_sources(problem: Problem, permutations: Sequence[Permutations]) -> list[Tensor]:
    """The matrices that invert the permutation of the features: f[p[j]] = f'[j]."""
    matrices = []
    for own in permutations:
        order = problem.plan.feature_order(own)
        matrix = torch.zeros(len(order), len(order))
        matrix[order, torch.arange(len(order))] = 1.0
        matrices.append(matrix.to(problem.device))
    return matrices


def _paired(pairs: Tensor, order: Tensor | None) -> Tensor:
    """The head pairs used to find one shared inner order: the matched ones where known, otherwise all."""
    H = len(pairs)
    return pairs.flatten(0, 1) if order is None else pairs[torch.arange(H), order]
