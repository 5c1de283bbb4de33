"""Streamed fp64 sums of weighted rows, and the ridge regressions that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-12
"""Smallest ridge, relative to the mean diagonal: a space without any variance has a regression of zero."""

SMALLEST_BLOCK = 192
"""Units up to which the products of all pairs are computed at once."""


class Moments:
    """Sums over rows of w, w x, w y, w x x^T and w x y^T, in fp64; rows arrive in parts.

    every: only every n-th of the rows whose weight is not 0 is added, counted through all parts.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self._passed = 0
        self.weight: Tensor | float = 0.0
        self.x: Tensor | float = 0.0
        self.y: Tensor | float = 0.0
        self.xx: Tensor | float = 0.0
        self.xy: Tensor | float = 0.0
        self.yy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Add the rows x [n, p], y [n, q] with weights [n] (None: all are 1); rows of weight 0 are passed over."""
        if weight is not None:
            used = weight > 0
            if not bool(used.all()):
                x, weight = x[used], weight[used]
                y = None if y is None else y[used]
        if self.every > 1:
            kept = slice(-self._passed % self.every, None, self.every)
            self._passed += len(x)
            x, y, weight = x[kept], None if y is None else y[kept], None if weight is None else weight[kept]
        x = x.double()
        weight = torch.ones(len(x), dtype=x.dtype, device=x.device) if weight is None else weight.double()
        scaled = x * weight[:, None]
        self.weight = self.weight + weight.sum()
        self.x = self.x + scaled.sum(0)
        self.xx = self.xx + _gram(scaled, x)
        if y is not None:
            y = y.double()
            self.y = self.y + weight @ y
            self.yy = self.yy + weight @ y.square()
            self.xy = self.xy + scaled.T @ y

    def second(self) -> Tensor:
        """E[x x^T], [p, p]."""
        return torch.as_tensor(self.xx) / self.weight

    def covariance(self) -> Tensor:
        """E[x x^T] - E[x] E[x]^T, [p, p]."""
        mean = torch.as_tensor(self.x) / self.weight
        return self.second() - mean[:, None] * mean


def _gram(scaled: Tensor, x: Tensor) -> Tensor:
    """scaled^T x, [p, p], which is symmetric: of large blocks beside the diagonal only one of two is computed."""
    p = x.shape[1]
    if p <= SMALLEST_BLOCK:
        return scaled.T @ x
    a, b = slice(p // 2), slice(p // 2, None)
    found = x.new_empty(p, p)
    found[a, a], found[b, b] = _gram(scaled[:, a], x[:, a]), _gram(scaled[:, b], x[:, b])
    found[a, b] = scaled[:, a].T @ x[:, b]
    found[b, a] = found[a, b].T
    return found


def stride(rows: int, enough: int, period: int) -> int:
    """Every how many of `rows` rows are to be added to have at least `enough`; 1 if there are not twice as many.

    period: rows of one image. The stride has no common factor with it, so that every token has its turn.
    """
    found = max(1, rows // enough)
    while math.gcd(found, period) > 1:
        found -= 1
    return found


@dataclass(frozen=True)
class Linear:
    """y = B x + a, with B [q, p] and a [q]; errors: share of the variance of each y that is left, [q]."""

    matrix: Tensor
    intercept: Tensor
    errors: Tensor


def regression(moments: Moments, ridge: float, intercept: bool = True, prior: Tensor | None = None) -> Linear:
    """Ridge least squares of y on x, in fp64 by Cholesky.

    ridge: relative to the mean diagonal of the second moments of x. prior: the matrix [q, p] towards which the
    ridge pulls (None: zero).
    """
    weight = moments.weight
    x, y = torch.as_tensor(moments.x) / weight, torch.as_tensor(moments.y) / weight
    square, cross = moments.second(), torch.as_tensor(moments.xy) / weight
    spread = torch.as_tensor(moments.yy) / weight
    if intercept:
        square, cross, spread = square - x[:, None] * x, cross - x[:, None] * y, spread - y.square()
    start = torch.zeros_like(cross) if prior is None else prior.double().T
    added = (ridge * square.diagonal().mean()).clamp(min=SMALLEST)
    regular = square + added * torch.eye(len(square), dtype=square.dtype, device=square.device)
    found = start + torch.cholesky_solve(cross - square @ start, torch.linalg.cholesky(regular))
    left = spread - 2 * (found * cross).sum(0) + (found * (square @ found)).sum(0)
    constant = y - found.T @ x if intercept else torch.zeros_like(y)
    return Linear(found.T, constant, (left / spread.clamp(min=1e-300)).clamp(0, 1))


def square_root(matrix: Tensor, cutoff: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Symmetric square root of a positive semidefinite matrix [*, n, n], and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=0)
    kept = values > cutoff * values[..., -1:]
    roots = torch.where(kept, values.sqrt(), torch.zeros_like(values))
    inverse = torch.where(kept, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    return (vectors * roots[..., None, :]) @ vectors.mT, (vectors * inverse[..., None, :]) @ vectors.mT
