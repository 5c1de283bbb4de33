"""AdaMerging (Yang et al., arXiv 2310.02575): coefficients that minimise the entropy of the predictions."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import FORBID
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.task_vectors.coefficients import MIXED, Tuned, Tuning, descend, entropy, require_classes
from fsmerge_cli.methods.task_vectors.vectors import TaskVectors
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class AdaMerging(Tuned):
    """W'_l = W_0,l + sum_i c_il t_il with coefficients c in 0..1 that minimise the entropy of the predictions.

    The entropy is that of the merged model with the head of source i on unlabelled images of task i, summed over
    the tasks. per: tensor (layer-wise, one coefficient per task and tensor) or task. start: of every coefficient.
    steps, lr: of Adam. batch_size: images per task and step.
    """

    mixed_images: ClassVar[str] = MIXED

    name: Literal["ada_merging"] = "ada_merging"

    def check(self, problem: Problem) -> None:
        """Raise UserError where a source has no head or predicts a number, or a task has no images."""
        super().check(problem)
        require_classes(problem, self.name)

    def merge(self, vectors: TaskVectors) -> Solution:
        """Adam on the coefficients; base, task vectors and one merged network are in memory, in fp32."""
        tuning = Tuning(vectors, "ada_merging", self.batch_size)
        found = self.initial(tuning, self.start)
        adam = torch.optim.Adam([found], lr=self.lr)
        for step in range(self.steps):
            loss = entropy(tuning, tuning.weights(found.clamp(0, 1)), tuning.batch())
            descend(adam, loss)
            vectors.problem.progress(Event("coefficients", step + 1, self.steps, {"entropy": loss.item()}))
        return tuning.solution(found.clamp(0, 1))
