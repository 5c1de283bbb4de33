"""WIDEN (Yu et al., arXiv 2408.03092): columns are weighted by how far their length and direction moved."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.common.options import FORBID, NonNegativeFloat
from fsmerge_cli.methods.task_vectors.vectors import TaskVectorMethod, TaskVectors, ranks
from fsmerge_cli.training.problem import Solution


@dataclass(frozen=True, config=FORBID)
class Widen(TaskVectorMethod):
    """W' = W_0 + sum_i (a_i + b_i) / 2 t_i, column by column, with scores a of lengths and b of directions.

    A column holds what one input adds to all outputs. Its length changes by | |w_i| - |w_0| |, its direction by
    1 - cos(w_i, w_0). Both are ranked within a source, from 0 to 1 - 1/n for n columns. A score is the softmax of
    the ranks over the sources, or `score` where the rank is above `ratio` times the mean rank of the source. A
    vector (bias, norm) has one score per entry, from |t_i| instead of ranks, as in the code of the authors.
    """

    name: Literal["widen"] = "widen"
    ratio: NonNegativeFloat = 1.0
    score: NonNegativeFloat = 1.0

    def merge(self, vectors: TaskVectors) -> Solution:
        """Scores, then the weighted sum."""

        def merged(name: str, own: Tensor) -> Tensor:
            role = vectors.problem.plan.roles[name]
            if isinstance(role, Mapped) and own[0].numel() > own.shape[1 + role.write[0]]:
                by_column = own.movedim(1 + role.write[0], 1)
                moves, base = by_column.flatten(2), vectors.base(name).movedim(role.write[0], 0).flatten(1)
                total = (self.of_columns(moves, base)[:, None] * moves).sum(0)
                return total.reshape(by_column.shape[1:]).movedim(0, role.write[0])
            return (self.scores(own.abs().flatten(1)).reshape(own.shape) * own).sum(0)

        return vectors.solution(merged)

    def of_columns(self, moves: Tensor, base: Tensor) -> Tensor:
        """(a + b) / 2 of the columns, [k, n], for task vectors [k, m, n] and pretrained weights [m, n]."""
        there = base + moves
        lengths = (there.norm(dim=1) - base.norm(dim=0)).abs()
        turns = 1 - torch.cosine_similarity(there, base[None], dim=1)
        places = (ranks(changes).to(base) / base.shape[1] for changes in (lengths, turns))
        return torch.stack([self.scores(own) for own in places]).mean(0)

    def scores(self, significance: Tensor) -> Tensor:
        """Softmax over the sources, replaced where a source is well above its own mean: [k, n] -> [k, n]."""
        above = significance > self.ratio * significance.mean(1, keepdim=True)
        return torch.where(above, self.score, significance.softmax(0))
