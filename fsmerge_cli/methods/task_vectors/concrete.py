"""Concrete AdaMerging (Tang et al., arXiv 2312.06173): a shared mask of the task vectors, learned by descent."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.options import FORBID, Count, FiniteFloat, PositiveFloat
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods.task_vectors.coefficients import MIXED, Tuned, Tuning, descend, entropy, require_classes
from fsmerge_cli.methods.task_vectors.vectors import TaskVectors
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class Concrete(Tuned):
    """W'_l = W_0,l + m_l / mean(m_l) sum_i c_il t_il with m = sigmoid((x + log u - log(1 - u)) / T), u in 0..1.

    The logits x, one per entry for all tasks, are trained on the entropy of the predictions: in every step a new
    mask is drawn, the coefficients take one step from their start (inner level), and x takes one at these (upper
    level). Then the coefficients are trained as in AdaMerging, with a mask drawn once, and not kept in 0..1.
    temperature: T. mask_logit: start of x. mask_steps, mask_lr: of Adam on x. inner_lr: of the Adam whose one step
    the coefficients take; 1 in the code of the authors. per, start, steps, lr, batch_size: as of `ada_merging`.
    """

    mixed_images: ClassVar[str] = MIXED

    name: Literal["concrete"] = "concrete"
    steps: Count = 1000
    temperature: PositiveFloat = 0.5
    mask_logit: FiniteFloat = 0.0
    mask_steps: Count = 1000
    mask_lr: PositiveFloat = 1e-3
    inner_lr: PositiveFloat = 1e-3

    def check(self, problem: Problem) -> None:
        """Raise UserError where a source has no head or predicts a number, or a task has no images."""
        super().check(problem)
        require_classes(problem, self.name)

    def merge(self, vectors: TaskVectors) -> Solution:
        """Two trainings: mask, coefficients."""
        tuning = Tuning(vectors, "concrete", self.batch_size)
        logits = {n: torch.full_like(t, self.mask_logit).requires_grad_(True) for n, t in tuning.base.items()}
        random = generator(vectors.problem.seed, "concrete", "mask")
        self.train_mask(tuning, logits, random)
        with torch.no_grad():
            masks = self.masks(logits, random)
        found = self.initial(tuning, self.start)
        adam = torch.optim.Adam([found], lr=self.lr)
        for step in range(self.steps):
            loss = entropy(tuning, tuning.weights(found, masks), tuning.batch())
            descend(adam, loss)
            vectors.problem.progress(Event("coefficients", step + 1, self.steps, {"entropy": loss.item()}))
        return tuning.solution(found, masks)

    def train_mask(self, tuning: Tuning, logits: dict[str, Tensor], random: torch.Generator) -> None:
        """Train the logits in place."""
        coefficients = self.initial(tuning, self.start)
        inner = torch.optim.Adam([coefficients], lr=self.inner_lr)
        upper = torch.optim.Adam(logits.values(), lr=self.mask_lr)
        for step in range(self.mask_steps):
            masks = self.masks(logits, random)
            with torch.no_grad():
                coefficients.fill_(self.start)
            still = {n: m.detach() for n, m in masks.items()}
            descend(inner, entropy(tuning, tuning.weights(coefficients, still), tuning.batch()))
            loss = entropy(tuning, tuning.weights(coefficients.detach(), masks), tuning.batch())
            descend(upper, loss)
            tuning.problem.progress(Event("mask", step + 1, self.mask_steps, {"entropy": loss.item()}))

    def masks(self, logits: dict[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Relaxed Bernoulli samples (Concrete distribution, arXiv 1611.00712), divided by their mean."""
        found = {}
        for name, x in logits.items():
            u = torch.rand(x.shape, generator=random).clamp(1e-6, 1 - 1e-6).to(x.device)
            mask = ((x + u.logit()) / self.temperature).sigmoid()
            found[name] = mask / mask.mean()
        return found
