"""Orthogonal maps between the units of two networks, where an operation on single units does not rule them out.

A residual stream that only LayerNorms (or RMSNorms) read may be turned once their affine parameters are part of
the weights behind them: a norm without them commutes with every orthogonal map that keeps the mean of the units.
Heads of queries and keys, and of values, may be turned as well (Theus et al., arXiv 2506.22712, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form.outline import Branch, Outline, outline
from fsmerge_cli.alignment.matching import assignment
from fsmerge_cli.alignment.permutation import Permutations
from fsmerge_cli.alignment.space_maps import merged_unit
from fsmerge_cli.architectures.ports import Port, Unit
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.map_set import MergeMaps, maps_of_ports

PERMUTATION = 1e-6
"""Weight of the matching permutation, relative to the covariances; it decides what they leave open."""

Weights = Mapping[str, Tensor]
Turns = Sequence[Mapping[str, Tensor]]
"""By source and space, T [n, n] from the units of the source to those of source 1."""


def procrustes(cross: Tensor, matched: Tensor, centred: bool = False) -> Tensor:
    """The orthogonal T [n, n] with T x_2 closest to x_1, fp64 (Schoenemann 1966).

    With P diag(s) Q^T the decomposition of the covariance of x_1 with x_2, [n, n], it is P Q^T. matched: the
    permutation of x_2 that matches x_1, as a matrix, for what the covariance leaves open. centred: T also keeps
    the vector of ones.
    """
    scale = float(cross.norm()) or 1.0
    cross = cross.double() + PERMUTATION * scale * matched.double()
    if centred:
        n = len(cross)
        mean = torch.full((n, n), 1 / n, dtype=torch.float64)
        cross = cross - mean @ cross - cross @ mean + (mean @ cross @ mean) + scale * mean
    P, _, Qh = torch.linalg.svd(cross)
    T: Tensor = P @ Qh
    return T


@dataclass(frozen=True)
class Stream:
    """A residual stream that may be turned, and how its norms and scales become part of the weights.

    norms: the module of the norm in front of each reading port. scales: by writing port, the names of the per-unit
    factors of what is written there. centred: the norms subtract the mean of the units.
    """

    space: str
    norms: Mapping[Port, str]
    scales: Mapping[Port, Sequence[str]]
    centred: bool

    @property
    def units(self) -> set[str]:
        """The names of the per-unit tensors that become part of weights, and of the norms' parameters."""
        parts = {f"{norm}.{leaf}" for norm in self.norms.values() for leaf in ("weight", "bias")}
        return parts | {name for own in self.scales.values() for name in own}

    def reading(self, port: Port, own: Weights) -> Tensor:
        """A [n, n] of a source: what its weights read, from the output of the merged norm at this port.

        The merged norm has weight 1 and, where it has a bias b, bias 1: its output is the normalised stream plus
        the vector of ones, through which b goes: A = diag(g) (I - 1 1^T / n) + b 1^T / n.
        """
        norm = self.norms.get(port)
        if norm is None:
            return torch.eye(_size(self, own), dtype=torch.float64)
        gain = own[f"{norm}.weight"].double().cpu()
        found = torch.diag(gain)
        if self.centred:
            found = found - gain[:, None] / len(gain)
        if (bias := own.get(f"{norm}.bias")) is not None:
            found = found + bias.double().cpu()[:, None] / len(gain)
        return found

    def writing(self, port: Port, own: Weights) -> Tensor:
        """The factors [n] of what a source writes at this port."""
        found = torch.ones(_size(self, own), dtype=torch.float64)
        for name in self.scales.get(port, ()):
            found = found * own[name].double().cpu()
        return found


def _size(stream: Stream, own: Weights) -> int:
    return len(next(own[f"{norm}.weight"] for norm in stream.norms.values()))


def turnable_stream(plan: Plan) -> Stream | None:
    """The residual stream, where nothing but norms and scales acts on its single units; None for none."""
    found = outline(plan)
    if (
        found is None
        or plan.family.post_norm
        or plan.family.unitwise_stream
        or found.before
        or len(found.after) > 1
    ):
        return None
    branches = [branch for own in found.branches for branch in own]
    norms = {branch.read: branch.norm for branch in branches if branch.norm is not None}
    last = _last_ports(plan, found, branches)
    norms |= dict.fromkeys(last if found.after else [], "".join(found.after))
    scales = {branch.write: tuple(branch.scales) for branch in branches if branch.scales}
    stream = Stream(found.stream, norms, scales, found.centred)
    acting = {n for n, r in plan.roles.items() if isinstance(r, Unit) and r.port.space == found.stream}
    affine = all(f"{norm}.weight" in acting for norm in norms.values())
    return stream if norms and affine and acting <= stream.units else None


def _last_ports(plan: Plan, found: Outline, branches: Sequence[Branch]) -> Sequence[Port]:
    """The ports behind the blocks: of the heads, or of a projection in front of them."""
    inside = {branch.read for branch in branches}
    outside = [port for port in plan.reads if port.space == found.stream and port not in inside]
    return outside or plan.feature_ports


def takes_turns(plan: Plan, space: str) -> bool:
    """Whether the units of a space of heads, or of projected features, may be mixed orthogonally inside a head."""
    own = plan.spaces[space]
    units = any(isinstance(role, Unit) and role.port.space == space for role in plan.roles.values())
    return not units and not own.rotary and (own.heads is not None or _is_output(plan, space))


def _is_output(plan: Plan, space: str) -> bool:
    """Whether only heads read a space, so that nothing acts on its units."""
    return plan.features.space == space and all(p in plan.feature_ports for p in plan.reads if p.space == space)


def head_orders(plan: Plan, source: int, cross: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By space that leads, the heads of a source in the order of source 1's.

    The order with which the best turns of all heads leave the least distance: the assignment with the largest sum
    of nuclear norms of the covariances of a head with a head, relative to the covariance of the space.

    cross: by space, covariances of the units of source 1 with those of all sources, [n, k n].
    """
    scores: dict[str, Tensor] = {}
    for name, space in plan.spaces.items():
        if space.heads is None or space.order is None or name not in cross or not takes_turns(plan, name):
            continue
        H, n = space.heads[0], space.merged
        own = cross[name][:, source * n : (source + 1) * n].double()
        rows = torch.arange(n).chunk(H)
        found = torch.zeros(H, H, dtype=torch.float64)
        for g, h in product(range(H), range(H)):
            found[g, h] = torch.linalg.svdvals(own[rows[g]][:, rows[h]]).sum()
        scores[space.order] = scores.get(space.order, torch.zeros_like(found)) + found / (float(own.norm()) or 1.0)
    return {name: assignment(found) for name, found in scores.items()}


def turns_of_source(
    plan: Plan, source: int, cross: Mapping[str, Tensor], orders: Permutations, stream: Stream | None
) -> dict[str, Tensor]:
    """T of every space from a source to source 1, [n, n]; a permutation where nothing else is possible.

    cross: as in `head_orders`, by the spaces that are turned. orders: the permutations that match source 1.
    """
    found = {}
    for name, space in plan.spaces.items():
        n, order = space.merged, orders[name].cpu()
        matched = torch.eye(n, dtype=torch.float64)[order]
        found[name] = matched
        turned = stream is not None and name == stream.space
        if not (turned or takes_turns(plan, name)):
            continue
        own = cross[name][:, source * n : (source + 1) * n].cpu()
        if turned or space.heads is None:
            found[name] = procrustes(own, matched, turned and stream is not None and stream.centred)
            continue
        T = torch.zeros_like(matched)
        for rows in torch.arange(n).chunk(space.heads[0]):
            columns = order[rows].sort().values  # a whole head
            T[rows[:, None], columns] = procrustes(own[rows][:, columns], matched[rows][:, columns])
        found[name] = T
    return found


def turned_maps(
    plan: Plan, weights: Sequence[Weights], turns: Turns, shares: Sequence[float], stream: Stream | None
) -> MergeMaps:
    """The maps of W' = sum_i s_i T_i W_i S_i^-1, by port, with shares s_i of sum 1.

    Behind a norm of a stream that is turned, U is A T^T, and LayerScale is part of M (see `Stream`).
    """
    merge, unmerge = {}, {}
    for i, (own, T) in enumerate(zip(weights, turns)):
        for port in plan.writes:
            M = shares[i] * T[port.space]
            merge[port, i] = M * stream.writing(port, own) if stream and port.space == stream.space else M
        for port in plan.reads:
            U = T[port.space].T
            unmerge[port, i] = stream.reading(port, own) @ U if stream and port.space == stream.space else U
    return maps_of_ports(plan, merge, unmerge, _units(plan, weights, turns, shares, stream))


def _units(
    plan: Plan, weights: Sequence[Weights], turns: Turns, shares: Sequence[float], stream: Stream | None
) -> dict[str, Tensor]:
    found = {}
    for name, role in plan.roles.items():
        if not isinstance(role, Unit):
            continue
        if stream is not None and role.port.space == stream.space:
            found[name] = torch.ones_like(weights[0][name])
        else:
            maps = [share * T[role.port.space] for share, T in zip(shares, turns)]
            found[name] = merged_unit(role, [own[name] for own in weights], maps, plan)
    return found
