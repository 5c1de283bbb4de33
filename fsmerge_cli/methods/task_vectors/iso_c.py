"""Iso-C (Marczak et al., arXiv 2502.04959): the sum of the task vectors with all singular values equal."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, rows, weighted_sum
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class IsoC(Scaled):
    """W' = W_0 + c s U V^T for each matrix, with the decomposition U diag(s_1 ... s_r) V^T of sum_i w_i t_i.

    s is the mean of s_1 ... s_r, so that every direction of the sum counts alike. Tensors that are no matrix
    between two spaces (biases, norms, tables, the first layer) get c times the mean of the task vectors. The
    paper chooses the coefficient on labelled images.
    """

    name: Literal["iso_c"] = "iso_c"

    def merge(self, vectors: TaskVectors) -> Solution:
        """One singular value decomposition per matrix."""
        shares = self.shares(vectors)

        def merged(name: str, own: Tensor) -> Tensor:
            total = weighted_sum(shares, own)
            return self.coefficient * (isotropic(total) if vectors.is_matrix(name) else total / len(own))

        return vectors.solution(merged)


def isotropic(total: Tensor) -> Tensor:
    """A tensor, as a matrix of one row per output unit, with the mean of its singular values for each of them."""
    U, values, Vh = torch.linalg.svd(rows(total), full_matrices=False)
    flat: Tensor = values.mean() * U @ Vh
    return flat.reshape(total.shape)
