"""Expert Merging (Zhang et al., arXiv 2509.25712): coefficients that align hidden states and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fsmerge_cli.common.inputs import Inputs, in_use, used_rows
from fsmerge_cli.common.options import FORBID, Count, NonNegativeFloat, PositiveFloat
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.methods.task_vectors.coefficients import Tuned, Tuning, number_variances
from fsmerge_cli.methods.task_vectors.vectors import TaskVectors
from fsmerge_cli.training.problem import Solution
from fsmerge_cli.training.teachers import network, recorded_outputs


@dataclass(frozen=True, config=FORBID)
class ExpertMerging(Weighted, Tuned):
    """W'_l = W_0,l + sum_i c_il t_il with c = sigmoid(a), a minimising sum_i w_i (L_i + h H_i) + r k mean |c - s|.

    On unlabelled inputs of task i, L_i is the cross-entropy between the predictions of source i and those of the
    merged model with its head, at temperature T and times T^2 (of predicted numbers: their squared error, relative
    to their variance), and H_i the mean squared difference of the hidden states behind the middle block (all: the
    mean over all blocks). start: s, of every coefficient. steps, lr: of Adam, with gradients of length 1 at most;
    the authors take a few steps on 5 inputs per task. hidden: h. regularization: r. temperature: T.
    """

    mixed_images: ClassVar[str] = (
        "aligns the merged model with each source on images of its own task, and it is not known which these are. "
        "Folders named after the tasks avoid it"
    )

    name: Literal["expert_merging"] = "expert_merging"
    start: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.1
    steps: Count = 100
    lr: PositiveFloat = 0.5
    hidden: NonNegativeFloat = 1.0
    layers: Literal["middle", "all"] = "middle"
    regularization: NonNegativeFloat = 5.0
    temperature: PositiveFloat = 1.0

    def merge(self, vectors: TaskVectors) -> Solution:
        """Adam on the logits of the coefficients; the sources run on every batch."""
        tuning, problem = Tuning(vectors, "expert_merging", self.batch_size), vectors.running
        raw = self.initial(tuning, self.start).detach().logit().requires_grad_(True)
        adam = torch.optim.Adam([raw], lr=self.lr)
        shares = self.weights_of_tasks(len(problem.sources))
        teachers = [network(source, problem.device) for source in problem.sources]
        variances = number_variances(problem)
        for step in range(self.steps):
            batches, c = tuning.batch(), raw.sigmoid()
            parts = self.losses(tuning, teachers, tuning.weights(c), batches, variances)
            loss = torch.stack([w * part for w, part in zip(shares, parts)]).sum()
            loss = loss + self.regularization * len(shares) * (c - self.start).abs().mean()
            raw.grad = torch.autograd.grad(loss, raw)[0]
            nn.utils.clip_grad_norm_([raw], 1.0)
            adam.step()
            problem.progress(Event("coefficients", step + 1, self.steps, {"loss": loss.item()}))
        return tuning.solution(raw.sigmoid())

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of the predictions for two sets of logits [n, classes], at the temperature and times its square."""
        scores = (logits / self.temperature).log_softmax(-1)
        return -((targets / self.temperature).softmax(-1) * scores).sum(-1).mean() * self.temperature**2

    def losses(
        self,
        tuning: Tuning,
        teachers: Sequence[nn.Module],
        weights: Mapping[str, Tensor],
        batches: Sequence[Inputs],
        variances: Sequence[float],
    ) -> list[Tensor]:
        """L_i + h H_i of every task."""
        names = list(tuning.problem.plan.family.layers(tuning.module))
        names = names if self.layers == "all" else [names[(len(names) - 1) // 2]]
        found = []
        for i, (teacher, head, inputs) in enumerate(zip(teachers, tuning.heads, batches)):
            with torch.no_grad(), recorded_outputs(teacher, names) as there:
                targets = head(teacher(inputs))
            with recorded_outputs(tuning.module, names) as here:
                logits = tuning.logits_of(i, weights, inputs)
            if head.regression:
                loss = (logits - targets).square().mean() / variances[i]
            else:
                loss = self.cross_entropy(logits, targets)
            pairs = [[used_rows(own[name], in_use(inputs)) for own in (here, there)] for name in names]
            states = torch.stack([F.mse_loss(own, other) for own, other in pairs])
            found.append(loss + self.hidden * states.mean())
        return found
