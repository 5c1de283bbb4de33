"""Model Stock (Jang et al., arXiv 2403.19522): from the pretrained weights towards the mean."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID
from fsmerge_cli.methods.task_vectors.vectors import TaskVectorMethod, TaskVectors
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class ModelStock(TaskVectorMethod):
    """W' = r mean_i W_i + (1 - r) W_0 for each tensor, with r = k a / (1 + (k - 1) a).

    a is the mean cosine between the task vectors of two sources; a negative one counts as zero. It has no
    coefficient to choose. Made for sources of one task: for orthogonal task vectors it has the pretrained weights
    (running statistics of norms are averaged).
    """

    name: Literal["model_stock"] = "model_stock"

    def merge(self, vectors: TaskVectors) -> Solution:
        """Tensor by tensor."""
        return vectors.solution(lambda name, own: ratio(own) * own.mean(0))


def ratio(vectors: Tensor) -> float:
    """The share r of the mean, 0..1, of task vectors [k, *shape]."""
    k, flat = len(vectors), vectors.flatten(1)
    lengths = flat.norm(dim=1, keepdim=True)
    units = flat / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    cosines = units @ units.T
    a = float((cosines.sum() - cosines.diagonal().sum()) / (k * (k - 1))) if k > 1 else 1.0
    a = min(1.0, max(0.0, a))
    return k * a / (1 + (k - 1) * a)
