"""OPCM (Tang et al., arXiv 2501.09522): one task vector after the other, without the directions that are taken."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.task_vectors.vectors import TaskVectorMethod, TaskVectors, rows
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class OPCM(TaskVectorMethod):
    """W' = W_0 + c s_k with s_1 = t_1 and s_i = s_(i-1) + P(t_i), in the order of the sources.

    P leaves out of the matrix U^T t_i V, with s_(i-1) = U diag(v) V^T, the block of the strongest directions and
    the diagonal. Tensors that are no matrix between two spaces are added as they are. c gives the whole task
    vector the mean length of those of the sources. energy: share of the sum of the singular values in the block
    (alpha), the smallest that reaches it. This is the authors' formula, r = min {r : sum_(i<=r) v_i > alpha sum_i
    v_i} and a block of r by r; in their code it has one direction less.
    """

    name: Literal["opcm"] = "opcm"
    energy: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5

    def merge(self, vectors: TaskVectors) -> Solution:
        """Two passes: the length of the sum, then the merge."""

        def summed(name: str, own: Tensor) -> Tensor:
            total = own[0]
            for vector in own[1:]:
                total = total + (self.projected(vector, total) if vectors.is_matrix(name) else vector)
            return total

        lengths, square = torch.zeros(len(vectors.problem.sources), dtype=torch.float64), 0.0
        for name in vectors.names:
            own = vectors.of(name)
            lengths += own.flatten(1).square().sum(1).cpu()
            square += float(summed(name, own).square().sum())
        coefficient = float(lengths.sqrt().mean()) / square**0.5 if square else 1.0
        return vectors.solution(lambda name, own: coefficient * summed(name, own))

    def projected(self, vector: Tensor, total: Tensor) -> Tensor:
        """P(t): the part of a task vector outside the strongest directions of the sum so far, both [n, ...]."""
        U, values, Vh = torch.linalg.svd(rows(total), full_matrices=True)
        parts = U.T @ rows(vector) @ Vh.T
        reached = values.cumsum(0) <= self.energy * values.sum()
        strongest = min(int(reached.sum()) + 1, len(values)) if float(values.sum()) else 0
        parts[:strongest, :strongest] = 0
        parts.diagonal().zero_()
        found: Tensor = (U @ parts @ Vh).reshape(vector.shape)
        return found
