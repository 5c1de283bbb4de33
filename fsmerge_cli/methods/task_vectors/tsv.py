"""TSV-Merge (Gargiulo et al., arXiv 2412.00081): the strongest singular directions of each task."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, rows, weighted_sum
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class TSV(Scaled):
    """W' = W_0 + c A diag(s) B^T for each matrix, from the truncated parts U_i diag(s_i) V_i^T of w_i t_i.

    Each keeps a k-th of its singular values, the largest. A and B are the matrices with orthonormal columns that
    are nearest to [U_1 ... U_k] and [V_1 ... V_k] (Procrustes: P Q^T from their decomposition P D Q^T). Tensors
    that are no matrix between two spaces get c times the mean of the task vectors.
    """

    name: Literal["tsv"] = "tsv"

    def merge(self, vectors: TaskVectors) -> Solution:
        """K + 2 singular value decompositions per matrix."""
        shares = self.shares(vectors)

        def merged(name: str, own: Tensor) -> Tensor:
            if not vectors.is_matrix(name):
                return self.coefficient * weighted_sum(shares, own) / len(own)
            weighted = [share * rows(t) for share, t in zip(shares, own)]
            return self.coefficient * decorrelated(weighted).reshape(own.shape[1:])

        return vectors.solution(merged)


def decorrelated(matrices: list[Tensor]) -> Tensor:
    """The sum of the truncated matrices with orthogonal singular vectors, [n, m]."""
    rank = max(1, min(matrices[0].shape) // len(matrices))
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    values = torch.cat([s[:rank] for _, s, _ in parts])
    # A direction with the singular value zero is arbitrary, and would turn the others.
    kept = values > torch.finfo(values.dtype).eps * max(matrices[0].shape) * values.amax()
    if not kept.any():
        return torch.zeros_like(matrices[0])
    left = nearest_orthonormal(torch.cat([U[:, :rank] for U, _, _ in parts], 1)[:, kept])
    right = nearest_orthonormal(torch.cat([Vh[:rank].T for _, _, Vh in parts], 1)[:, kept])
    return (left * values[kept]) @ right.T


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """The matrix with orthonormal columns that is nearest to a matrix [n, m] (orthonormal rows where n < m)."""
    P, _, Qh = torch.linalg.svd(matrix, full_matrices=False)
    found: Tensor = P @ Qh
    return found
