"""WUDI-Merging (Cheng et al., arXiv 2503.08099): the task vector that interferes least with those of the tasks."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID, Count, PositiveFloat
from fsmerge_cli.methods.task_vectors.vectors import TaskVectorMethod, TaskVectors, rows
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class Wudi(TaskVectorMethod):
    """W' = W_0 + m for each matrix, m minimising sum_i |(m - t_i) t_i^T|^2 / |t_i|^2 from the start m = sum_i t_i.

    The rows of a task vector approximate the inputs of its layer, so the sum is the change of the outputs on
    these. Tensors that are no matrix between two spaces get the mean of the task vectors. steps, lr: of Adam, as
    published.
    """

    name: Literal["wudi"] = "wudi"
    steps: Count = 300
    lr: PositiveFloat = 1e-5

    def merge(self, vectors: TaskVectors) -> Solution:
        """One minimisation per matrix, without data."""

        def merged(name: str, own: Tensor) -> Tensor:
            if not vectors.is_matrix(name):
                return own.mean(0)
            return self.minimised(torch.stack([rows(t) for t in own])).reshape(own.shape[1:])

        return vectors.solution(merged)

    def minimised(self, vectors: Tensor) -> Tensor:
        """Adam on m. The gradient is 2 (m A - B), A = sum_i G_i, B = sum_i t_i G_i, G_i = t_i^T t_i / |t_i|^2."""
        scale = vectors.square().sum((1, 2), keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)
        grams = vectors.mT @ vectors / scale
        A, B = grams.sum(0), (vectors @ grams).sum(0)
        m = vectors.sum(0).requires_grad_(True)
        adam = torch.optim.Adam([m], lr=self.lr)
        for _ in range(self.steps):
            m.grad = 2 * (m.detach() @ A - B)
            adam.step()
        return m.detach()
