"""Slerp (Shoemake 1985): spherical interpolation of each tensor; the Karcher mean for more than two sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.matching import aligned, require_images, require_one_width
from fsmerge_cli.common.errors import ConfigError, MismatchError
from fsmerge_cli.common.options import FORBID, NonNegativeFloat
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.training.problem import Problem, Solution

PARALLEL = 0.9995
"""Cosine above which interpolation is linear. Below its negative there is no unique shortest path."""


@dataclass(frozen=True, config=FORBID)
class Slerp(Resets):
    """W' = [sin((1 - t) a) W_1 + sin(t a) W_2] / sin a for each tensor, with the angle a between W_1 and W_2.

    The weights are not normalised. t: 0 gives source 1, 1 gives source 2; only for two sources (with more, all
    have equal shares, and t stays 0.5). align: none, or activations (first permute the units of every source to
    match source 1, which needs images). shares: of every source, in place of t; several such lists for the parts
    of the network between `boundaries`, which are places in the order of its parameters, 0 the first and 1 the
    last (M2N2, arXiv 2508.16204).
    """

    one_width: ClassVar[bool] = True

    name: Literal["slerp"] = "slerp"
    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    align: Literal["none", "activations"] = "none"
    boundaries: tuple[Annotated[float, Field(strict=True, gt=0, lt=1)], ...] = ()
    shares: tuple[tuple[NonNegativeFloat, ...], ...] | None = None

    def check(self, problem: Problem) -> None:
        """Raise UserError where the widths differ, `t` does not apply, or there are no images to align with."""
        require_one_width(problem.plan, self.name)
        k = len(problem.sources)
        if k != 2 and self.t != 0.5:
            raise ConfigError(
                f"method.t={self.t} is only for two sources; {k} sources are merged with equal shares (t=0.5)."
            )
        self._require_shares(k)
        if self.align != "none":
            require_images(problem, f"{self.name} method.align={self.align}")

    def fit(self, problem: Problem) -> Solution:
        """Interpolate every tensor. Raises MismatchError that lists the tensors without a spherical mean."""
        self.check(problem)
        matched = aligned(problem, self.align)
        problem = matched.problem
        parts, mean = self.parts(len(problem.sources))
        merged, opposite = {}, []
        weights = problem.weights()
        places = placed({name: t for name, t in weights[0].items() if t.is_floating_point()})
        for name in weights[0]:
            tensors = [w[name] for w in weights]
            if not tensors[0].is_floating_point():
                merged[name] = tensors[0].clone()
                continue
            own = within(parts, *places[name], tensors[0].numel())
            still = name.endswith(("running_mean", "running_var"))
            if not still and _smallest_cosine(tensors) < -PARALLEL:
                opposite.append(
                    f"{name} points in opposite directions in two sources, which have no unique shortest path"
                )
            elif not still and any(_cancels(tensors, shares) for _, shares in own):
                opposite.append(f"{name} points in directions that cancel out, which have no mean on the sphere")
            else:
                merged[name] = _joined(tensors, own, _mean if still else slerp)
        if opposite:
            raise MismatchError(opposite)
        solution = Solution(merged, matched.back, permutations=matched.permutations)
        return self.reset(problem, solution, [len(mean) * share for share in mean])

    def _require_shares(self, k: int) -> None:
        """Raise ConfigError for shares that do not fit the sources, the boundaries or `t`."""
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ConfigError(f"method.boundaries={list(self.boundaries)}: should be different and ascending.")
        if self.shares is None:
            if self.boundaries:
                raise ConfigError(
                    "method.boundaries divides the network into parts that differ in their shares. Pass them too: "
                    "method.shares=[[...],...]."
                )
            return
        if self.t != 0.5:
            raise ConfigError(f"method.t={self.t} and method.shares exclude each other. Pass one of them.")
        if len(self.shares) != len(self.boundaries) + 1:
            raise ConfigError(
                f"method.shares has {len(self.shares)} lists, but method.boundaries makes "
                f"{len(self.boundaries) + 1} parts. Pass one list per part."
            )
        for own in self.shares:
            if len(own) != k or not sum(own):
                raise ConfigError(
                    f"method.shares has the list {list(own)}, but there are {k} sources. Pass one share per "
                    "source, not all of them 0."
                )

    def parts(self, k: int) -> tuple[list[tuple[float, list[float]]], list[float]]:
        """Where each part of the network ends (0 to 1) with its shares, of sum 1; the mean shares of all of it."""
        if self.shares is None:
            own = [1 - self.t, self.t] if k == 2 else [1 / k] * k
            return [(1.0, own)], own
        shares = [[share / sum(own) for share in own] for own in self.shares]
        ends = [*self.boundaries, 1.0]
        lengths = [end - start for start, end in zip([0.0, *ends], ends)]
        mean = [sum(length * own[i] for length, own in zip(lengths, shares)) for i in range(k)]
        return list(zip(ends, shares)), mean


def placed(tensors: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Where the parameters of every tensor begin and end among all of them, 0 to 1."""
    total, found, start = sum(t.numel() for t in tensors.values()), {}, 0
    for name, tensor in tensors.items():
        found[name] = start / total, (start + tensor.numel()) / total
        start += tensor.numel()
    return found


def within(
    parts: Sequence[tuple[float, list[float]]], start: float, end: float, size: int
) -> list[tuple[int, list[float]]]:
    """The parts of one tensor: the number of its entries up to the end of each part, and the shares there."""
    found: list[tuple[int, list[float]]] = []
    for place, shares in parts:
        count = min(size, round((place - start) / (end - start) * size)) if end > start else size
        if count > (found[-1][0] if found else 0):
            found.append((count, shares))
    return found or [(size, parts[-1][1])]


def _joined(
    tensors: Sequence[Tensor],
    parts: Sequence[tuple[int, list[float]]],
    rule: Callable[[Sequence[Tensor], Sequence[float]], Tensor],
) -> Tensor:
    """The tensor whose entries in each part are those of the rule with the shares of the part."""
    if len(parts) == 1:
        return rule(tensors, parts[0][1])
    pieces, start = [], 0
    for end, shares in parts:
        pieces.append(rule(tensors, shares).flatten()[start:end])
        start = end
    return torch.cat(pieces).reshape(tensors[0].shape)


def slerp(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted Karcher mean of `tensors`; for two of them [sin((1-t)w) a + sin(tw) b] / sin w.

    The mean of the directions is computed in the basis of the k directions (a k x k problem in fp64). Its
    coefficients are then applied to the unnormalised tensors. Where all tensors are nearly parallel, or one is
    zero, the mean is linear.
    """
    flat = [t.double().flatten() for t in tensors]
    norms = torch.stack([f.norm() for f in flat])
    if bool((norms == 0).any()) or _smallest_cosine(tensors) > PARALLEL:
        return _mean(tensors, shares)
    units = torch.stack(flat) / norms[:, None]
    coefficients = _karcher(units @ units.T, torch.tensor(shares, dtype=torch.float64, device=units.device))
    return (coefficients @ torch.stack(flat)).reshape(tensors[0].shape).to(tensors[0].dtype)


def _karcher(gram: Tensor, shares: Tensor, steps: int = 100) -> Tensor:
    """Coefficients c of the mean direction u = sum_i c_i x_i of unit vectors with this Gram matrix.

    Fixed point of u <- exp_u(sum_i shares_i log_u(x_i)), starting from the chordal mean.
    """
    c = shares / (shares @ gram @ shares).sqrt()
    for _ in range(steps):
        cosine = (gram @ c).clamp(-1, 1)
        angle = cosine.arccos()
        factor = torch.where(angle > 1e-12, angle / angle.sin().clamp(min=1e-300), torch.ones_like(angle))
        tangent = shares * factor - (shares * factor * cosine).sum() * c
        length = (tangent @ gram @ tangent).clamp(min=0).sqrt()
        if length < 1e-14:
            break
        c = length.cos() * c + length.sin() * tangent / length
    return c


def _cancels(tensors: Sequence[Tensor], shares: Sequence[float]) -> bool:
    """Whether the weighted mean of the directions is nearly zero, so that it has no direction."""
    flat = [t.double().flatten() for t in tensors]
    if any(float(f.norm()) == 0 for f in flat):
        return False
    mean = sum(share * f / f.norm() for share, f in zip(shares, flat))
    return float(torch.as_tensor(mean).norm()) < 1e-3


def _smallest_cosine(tensors: Sequence[Tensor]) -> float:
    flat = [t.double().flatten() for t in tensors]
    smallest = math.inf
    for i, a in enumerate(flat):
        for b in flat[:i]:
            product = float(a.norm() * b.norm())
            smallest = min(smallest, float(a @ b) / product if product else 1.0)
    return smallest


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = sum(share * t.double() for share, t in zip(shares, tensors))
    return torch.as_tensor(total).to(tensors[0].dtype)
