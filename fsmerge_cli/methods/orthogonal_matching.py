"""Orthogonal matching (Theus et al., arXiv 2506.22712): stream and heads are turned to source 1's and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fsmerge_cli.alignment.matching import match_all, require_images, require_one_width, similarities
from fsmerge_cli.alignment.orthogonal import (
    Stream,
    Turns,
    head_orders,
    takes_turns,
    turnable_stream,
    turned_maps,
    turns_of_source,
)
from fsmerge_cli.alignment.statistics import correlations, covariance
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network

VERIFIED = 8
"""Images on which a source is compared with itself after its turn."""

TOLERANCE = 1e-3
"""Largest error of its features, relative to their size."""


@dataclass(frozen=True, config=FORBID)
class OrthogonalMatching(Weighted, Resets):
    """W' = sum_i w_i T_i W_i S_i^-1 / k, with orthogonal maps T_i, S_i to the units of source 1, T_1 = I.

    Of a pre-norm transformer the weight g and bias b of every LayerNorm first become part of the weights that read
    it, W diag(g) and W b, and LayerScale of those that write; then every orthogonal map of the residual stream
    that keeps the mean of the units leaves the function as it is. It is the one that brings the normalised streams
    of all depths closest to source 1's (orthogonal Procrustes on the activations on all images). Heads are
    assigned to those of source 1, and queries and keys, and values, turned inside each head; hidden units are
    permuted. What an operation on single units acts on (streams of convolutions, of blocks that normalise after
    the sum, rotary or normalised queries) gets the permutation of activation matching. That the turn leaves every
    source as it is, is verified on some images; where it does not, the stream is permuted as well.
    """

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True

    name: Literal["orthogonal_matching"] = "orthogonal_matching"

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ or there are no images."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Match, turn, average, and reset the statistics of BatchNorm."""
        self.check(problem)
        plan, k = problem.plan, len(problem.sources)
        stream = turnable_stream(plan)
        turns = find_turns(problem, stream)
        if stream is not None and turn_error(problem, turns, stream) > TOLERANCE:
            stream = None
            turns = find_turns(problem, stream)
        shares = [w / k for w in self.weights_of_tasks(k)]
        weights = problem.weights("cpu")
        maps = turned_maps(plan, weights, turns, shares, stream).to(problem.device)
        projectors = tuple(maps.projector(plan, i) for i in range(k))
        turned = [n for n in plan.spaces if takes_turns(plan, n) or (stream is not None and n == stream.space)]
        facts = {
            "spaces_turned": float(len(turned)),
            "spaces_permuted": float(len(plan.spaces) - len(turned)),
            "stream_turned": float(stream is not None),
        }
        solution = Solution(fold(plan, maps, weights), projectors, maps=maps, facts=facts)
        merge = {name: [s * T[name] for s, T in zip(shares, turns)] for name in plan.spaces}
        return self.reset_of_clusters(problem, solution, merge)


def find_turns(problem: Problem, stream: Stream | None) -> Turns:
    """The maps of every source to source 1, by space; `stream`: the residual stream, if it is turned."""
    plan, k = problem.plan, len(problem.sources)
    identity = [{n: torch.eye(s.merged, dtype=torch.float64) for n, s in plan.spaces.items()} for _ in range(k)]
    networks = [network(source, problem.device) for source in problem.sources]
    if stream is not None:  # whose norms are standardised
        networks = [turned_network(problem, identity, stream, i)[0] for i in range(k)]
    spaces = [n for n in plan.spaces if takes_turns(plan, n) or (stream is not None and n == stream.space)]
    cross = correlations(
        plan,
        networks,
        problem.images.images,
        problem.hardware.eval_batch,
        problem.device,
        problem.progress,
        first=True,
        measure=covariance,
        spaces=spaces,
    )
    heads = [head_orders(plan, i, cross) if i else {} for i in range(k)]
    orders = match_all(plan, similarities(problem, first=True), k, problem.progress, heads)
    turns = [identity[0]]
    for i in range(1, k):
        problem.progress(Event("turn units", i - 1, k - 1))
        turns.append(turns_of_source(plan, i, cross, orders[i], stream))
    problem.progress(Event("turn units", k - 1, k - 1))
    return turns


def turned_network(problem: Problem, turns: Turns, stream: Stream | None, source: int) -> tuple[nn.Module, Tensor]:
    """One source after its turn, a network of the same function, and its projector U_out [d, d]."""
    plan = problem.plan
    one = [float(i == source) for i in range(len(problem.sources))]
    weights = problem.weights("cpu")
    maps = turned_maps(plan, weights, turns, one, stream).to(problem.device)
    module = plan.skeleton()
    module.load_state_dict(fold(plan, maps, weights), assign=True)
    return module.requires_grad_(False).eval(), maps.projector(plan, source)


def turn_error(problem: Problem, turns: Turns, stream: Stream | None) -> float:
    """The largest error of the features of a turned source on some images, relative to their size."""
    images = problem.images.images[:VERIFIED].to(problem.device)
    errors: Sequence[float] = []
    with torch.inference_mode():
        for i, source in enumerate(problem.sources):
            expected = network(source, problem.device)(images)
            module, U = turned_network(problem, turns, stream, i)
            errors = [*errors, float((module(images) @ U.T - expected).norm() / expected.norm().clamp(min=1e-30))]
    return max(errors)
