"""Maps between feature spaces in several structures, as single maps or stacks.

A map is a matrix T [rows, cols] from a space of size cols to one of size rows. A merge map M_i is [d', d_i], an
unmerge map U_i is [d_i, d'] (FS-Merge, arXiv 2410.01483, section 4). The tensors of a map may have leading axes,
written `*`; then it is a stack of maps, and `left` and `right` are batched products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

Structure = Literal["diagonal", "low_rank", "full", "heads"]


@dataclass(frozen=True, eq=False)
class Map(ABC):
    """A linear map T [*, rows, cols]; its tensors are the fields after rows and cols."""

    rows: int
    cols: int

    @abstractmethod
    def left(self, W: Tensor) -> Tensor:
        """T W: [*, cols, n] -> [*, rows, n]."""

    @abstractmethod
    def right(self, W: Tensor) -> Tensor:
        """W T: [*, n, rows] -> [*, n, cols]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map activations as rows, x T^T: [..., cols] -> [..., rows]; for one map, not for a stack."""
        return self.left(x.reshape(-1, self.cols).T).T.reshape(*x.shape[:-1], self.rows)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the map, by field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A map of the same kind with `change` applied to every tensor."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def dense(self) -> Tensor:
        """T as a dense matrix [rows, cols]; for the reference and for inspection."""
        one = next(iter(self.tensors().values()))
        return self.left(torch.eye(self.cols, dtype=one.dtype, device=one.device))


@dataclass(frozen=True, eq=False)
class Full(Map):
    """Any matrix [*, rows, cols]."""

    matrix: Tensor

    @classmethod
    def start(cls, rows: int, cols: int, scale: float, rank: int, random: torch.Generator) -> Full:
        """`scale` times the (rectangular) identity."""
        return cls(rows, cols, scale * torch.eye(rows, cols))

    @classmethod
    def of(cls, matrix: Tensor) -> Full:
        """One matrix, for methods that compute their maps instead of training them."""
        rows, cols = matrix.shape
        return cls(rows, cols, matrix.float())

    @classmethod
    def near(cls, matrix: Tensor, rank: int, random: torch.Generator) -> Full:
        """`matrix` itself."""
        return cls.of(matrix)

    def left(self, W: Tensor) -> Tensor:
        """T W."""
        return self.matrix @ W

    def right(self, W: Tensor) -> Tensor:
        """W T."""
        return W @ self.matrix


@dataclass(frozen=True, eq=False)
class Diagonal(Map):
    """One scale per unit, [*, min(rows, cols)]: T = diag(t), rectangular where rows and cols differ."""

    diagonal: Tensor

    @classmethod
    def start(cls, rows: int, cols: int, scale: float, rank: int, random: torch.Generator) -> Diagonal:
        """`scale` times the (rectangular) identity."""
        return cls(rows, cols, torch.full((min(rows, cols),), scale))

    @classmethod
    def near(cls, matrix: Tensor, rank: int, random: torch.Generator) -> Diagonal:
        """The diagonal of `matrix`."""
        return cls(matrix.shape[0], matrix.shape[1], matrix.diagonal().clone())

    def left(self, W: Tensor) -> Tensor:
        """T W without a dense T."""
        units = self.diagonal.shape[-1]
        kept = W[..., :units, :] * self.diagonal[..., None]
        return F.pad(kept, (0, 0, 0, self.rows - units)) if self.rows > units else kept

    def right(self, W: Tensor) -> Tensor:
        """W T without a dense T."""
        units = self.diagonal.shape[-1]
        kept = W[..., :units] * self.diagonal[..., None, :]
        return F.pad(kept, (0, self.cols - units)) if self.cols > units else kept


@dataclass(frozen=True, eq=False)
class LowRank(Map):
    """T = diag(t) + B A; at the start A [*, rank, cols] is random and B [*, rows, rank] is zero."""

    diagonal: Tensor
    A: Tensor
    B: Tensor

    @classmethod
    def start(cls, rows: int, cols: int, scale: float, rank: int, random: torch.Generator) -> LowRank:
        """`scale` times the (rectangular) identity, exactly, because B is zero."""
        A = torch.randn(rank, cols, generator=random) / cols**0.5
        return cls(rows, cols, torch.full((min(rows, cols),), scale), A, torch.zeros(rows, rank))

    @classmethod
    def near(cls, matrix: Tensor, rank: int, random: torch.Generator) -> LowRank:
        """The diagonal of `matrix` plus the best rank-`rank` approximation of the rest."""
        diagonal = matrix.diagonal().clone()
        P, s, Qh = torch.linalg.svd(
            matrix - torch.zeros_like(matrix).diagonal_scatter(diagonal), full_matrices=False
        )
        root = s[:rank].sqrt()
        return cls(matrix.shape[0], matrix.shape[1], diagonal, root[:, None] * Qh[:rank], P[:, :rank] * root)

    @property
    def base(self) -> Diagonal:
        """The diagonal part."""
        return Diagonal(self.rows, self.cols, self.diagonal)

    def left(self, W: Tensor) -> Tensor:
        """T W at a cost proportional to the rank."""
        return self.base.left(W) + self.B @ (self.A @ W)

    def right(self, W: Tensor) -> Tensor:
        """W T at a cost proportional to the rank."""
        return self.base.right(W) + (W @ self.B) @ self.A


@dataclass(frozen=True, eq=False)
class HeadBlocks(Map):
    """T = (S x I_d) diag(B_1 ... B_H): one d x d block per source head, then S [*, H, H] mixes the heads.

    blocks [*, H, d, d]. The `att_heads` structure of FS-Merge (arXiv 2410.01483); size and number of heads
    are those of the source.
    """

    blocks: Tensor
    mixing: Tensor

    @classmethod
    def start(cls, size: int, heads: int, scale: float) -> HeadBlocks:
        """`scale` times the identity."""
        blocks = torch.eye(size // heads).repeat(heads, 1, 1)
        return cls(size, size, blocks, scale * torch.eye(heads))

    def left(self, W: Tensor) -> Tensor:
        """T W head by head."""
        heads, size = self.blocks.shape[-3], self.blocks.shape[-1]
        inner = self.blocks @ W.reshape(*W.shape[:-2], heads, size, W.shape[-1])  # [*, H, d, n]
        mixed = self.mixing @ inner.flatten(-2)
        return mixed.reshape(*W.shape[:-2], self.rows, W.shape[-1])

    def right(self, W: Tensor) -> Tensor:
        """W T head by head."""
        heads, size = self.blocks.shape[-3], self.blocks.shape[-1]
        split = W.reshape(*W.shape[:-1], heads, size).movedim(-2, -3)  # [*, H, n, d]
        mixed = (self.mixing.mT @ split.flatten(-2)).reshape(split.shape)
        inner = mixed @ self.blocks
        return inner.movedim(-3, -2).flatten(-2)


MAPS: dict[str, type[Full] | type[Diagonal] | type[LowRank]] = {
    "diagonal": Diagonal,
    "low_rank": LowRank,
    "full": Full,
}
