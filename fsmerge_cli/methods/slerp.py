"""Slerp (Shoemake 1985): spherical interpolation of each tensor; the Karcher mean for more than two sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.matching import aligned, require_images, require_one_width
from fsmerge_cli.common.errors import ConfigError, MismatchError
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.training.problem import Problem, Solution

PARALLEL = 0.9995
"""Cosine above which interpolation is linear. Below its negative there is no unique shortest path."""


@dataclass(frozen=True, config=FORBID)
class Slerp(Resets):
    """W' = [sin((1 - t) a) W_1 + sin(t a) W_2] / sin a for each tensor, with the angle a between W_1 and W_2.

    The weights are not normalised. t: 0 gives source 1, 1 gives source 2; only for two sources (with more, all
    have equal shares, and t stays 0.5). align: none, or activations (first permute the units of every source to
    match source 1, which needs images).
    """

    one_width: ClassVar[bool] = True

    name: Literal["slerp"] = "slerp"
    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    align: Literal["none", "activations"] = "none"

    def check(self, problem: Problem) -> None:
        """Raise UserError where the widths differ, `t` does not apply, or there are no images to align with."""
        require_one_width(problem.plan, self.name)
        k = len(problem.sources)
        if k != 2 and self.t != 0.5:
            raise ConfigError(
                f"method.t={self.t} is only for two sources; {k} sources are merged with equal shares (t=0.5)."
            )
        if self.align != "none":
            require_images(problem, f"{self.name} method.align={self.align}")

    def fit(self, problem: Problem) -> Solution:
        """Interpolate every tensor. Raises MismatchError that lists the tensors without a spherical mean."""
        self.check(problem)
        k = len(problem.sources)
        matched = aligned(problem, self.align)
        problem = matched.problem
        shares = [1 - self.t, self.t] if k == 2 else [1 / k] * k
        merged, opposite = {}, []
        weights = problem.weights()
        for name in weights[0]:
            tensors = [w[name] for w in weights]
            if not tensors[0].is_floating_point() or name.endswith(("running_mean", "running_var")):
                merged[name] = _mean(tensors, shares)
            elif _smallest_cosine(tensors) < -PARALLEL:
                opposite.append(
                    f"{name} points in opposite directions in two sources, which have no unique shortest path"
                )
            elif _cancels(tensors, shares):
                opposite.append(f"{name} points in directions that cancel out, which have no mean on the sphere")
            else:
                merged[name] = slerp(tensors, shares)
        if opposite:
            raise MismatchError(opposite)
        solution = Solution(merged, matched.back, permutations=matched.permutations)
        return self.reset(problem, solution, [k * s for s in shares])


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
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    total = sum(share * t.double() for share, t in zip(shares, tensors))
    return torch.as_tensor(total).to(tensors[0].dtype)
