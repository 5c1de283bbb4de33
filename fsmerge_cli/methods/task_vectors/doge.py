"""DOGE (Wei et al., arXiv 2501.01230): a shared change of the task vectors, by projected descent."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID, Count, Positive, PositiveFloat
from fsmerge_cli.methods.task_vectors.vectors import Density, TaskVectorMethod, TaskVectors, rows, thresholds
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class Doge(TaskVectorMethod):
    """W' = W_0 + sum_i l_i m_i (t_i + d) for each matrix, with l_i = c / |t_i| and a shared change d.

    d minimises sum_j |rowsum t_j (t_j - sum_i l_i (t_i + d))|^2, the first-order change of the losses; its
    gradient leaves out the directions that the tasks share, the first of those of [U_1 ... U_k] with the
    strongest left singular vectors U_i of t_i. m_i masks the entries of t_i of largest magnitude. Tensors that
    are no matrix between two spaces get the mean of the task vectors. coefficient: c. density: share of the
    entries in the masks. shared: the number of shared directions is the rank divided by it. steps, lr: of Adam.
    """

    name: Literal["doge"] = "doge"
    coefficient: PositiveFloat = 0.07
    density: Density = 0.3
    shared: Positive = 6
    steps: Count = 400
    lr: PositiveFloat = 1e-4

    def merge(self, vectors: TaskVectors) -> Solution:
        """One minimisation per matrix, without data."""
        limits = torch.tensor(thresholds(vectors, self.density), device=vectors.problem.device)

        def merged(name: str, own: Tensor) -> Tensor:
            if not vectors.is_matrix(name):
                return own.mean(0)
            matrices = torch.stack([rows(t) for t in own])
            scale = self.scales(matrices)
            kept = matrices.abs().float() >= limits[:, None, None]
            total = (scale * kept * (matrices + self.change(matrices, scale))).sum(0)
            return total.reshape(own.shape[1:])

        return vectors.solution(merged)

    def scales(self, matrices: Tensor) -> Tensor:
        """l_i, [k, 1, 1]; zero for a task vector of zeros."""
        lengths = matrices.flatten(1).norm(dim=1)
        return torch.where(lengths > 0, self.coefficient / lengths, 0.0)[:, None, None]

    def change(self, matrices: Tensor, scale: Tensor) -> Tensor:
        """D [n, m] for task vectors [k, n, m]."""
        basis = shared_directions(matrices, self.shared)
        total, sum_of_scales = (scale * matrices).sum(0), scale.sum()
        d = torch.zeros_like(total).requires_grad_(True)
        adam = torch.optim.Adam([d], lr=self.lr)
        for _ in range(self.steps):
            rest = matrices - total - sum_of_scales * d.detach()
            errors = (matrices * rest).sum(2, keepdim=True)  # of every task and row
            slope = -2 * sum_of_scales * (errors * matrices).sum(0)
            d.grad = slope - basis @ (basis.T @ slope)
            adam.step()
        return d.detach()


def shared_directions(matrices: Tensor, divisor: int) -> Tensor:
    """Orthonormal columns [n, r]: the strongest directions of the matrices' strongest left singular vectors."""
    rank = min(matrices.shape[1:])
    each = rank // len(matrices)
    left = [torch.linalg.svd(matrix, full_matrices=False)[0][:, :each] for matrix in matrices]
    found: Tensor = torch.linalg.svd(torch.cat(left, 1), full_matrices=False)[0][:, : rank // divisor]
    return found
