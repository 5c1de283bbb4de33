"""Fisher merging (Matena & Raffel, arXiv 2111.09832): the mean of the weights, by their Fisher information."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.func import functional_call

from fsmerge_cli.alignment.matching import aligned, require_heads, require_images, require_one_width
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, Positive, PositiveFloat
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network


@dataclass(frozen=True, config=FORBID)
class Fisher(Weighted):
    """W' = sum_i w_i F_i W_i / sum_i w_i F_i, entry by entry, with the diagonal F_i of the Fisher information.

    F_i = E_x E_y (d log p_i(y | x) / d W_i)^2 over unlabelled images x of task i and labels y of the source's own
    prediction p_i. labels: all classes up to this number are weighted by their probability; of more, so many
    labels are sampled for each image. floor: added to F_i, relative to its mean. align: none, or activations
    (first permute the units of every source to match source 1, for other initialisations).
    """

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True
    mixed_images: ClassVar[str] = (
        "takes the Fisher information of a source on images of its own task, and it is not known which these are. "
        "Folders named after the tasks avoid it"
    )

    name: Literal["fisher"] = "fisher"
    labels: Positive = 16
    floor: PositiveFloat = 1e-6
    align: Literal["none", "activations"] = "none"

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ, a source has no head, or a task no images."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)
        problem.require_task_images()
        require_heads(problem, self.name)

    def fit(self, problem: Problem) -> Solution:
        """One forward pass per image, and one backward pass per label."""
        self.check(problem)
        matched = aligned(problem, self.align)
        problem = matched.problem
        weights = problem.weights()
        shares = self.weights_of_tasks(len(weights))
        found: list[dict[str, Any]] = [self.information(problem, i) for i in range(len(weights))]
        merged = {}
        for name, first in weights[0].items():
            terms = [share * own.get(name, 1.0) for share, own in zip(shares, found)]
            if first.is_floating_point():
                total = sum(term * w[name].double() for term, w in zip(terms, weights))
                merged[name] = torch.as_tensor(total / sum(terms)).float()
            else:
                merged[name] = first.clone()
        return Solution(merged, matched.back, permutations=matched.permutations)

    def information(self, problem: Problem, source: int) -> dict[str, Tensor]:
        """The diagonal of one source's Fisher information, by tensor, in fp64; floor included."""
        own = problem.sources[source]
        module, head = network(own, problem.device), own.head
        if head is None:
            raise ConfigError(f"'{own.name}' has no head.")
        head, images = head.to(problem.device), problem.task_images(source)
        weights = {name: t.detach().requires_grad_(True) for name, t in module.named_parameters()}
        random = generator(problem.seed, "fisher", own.name)
        found = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in weights.items()}
        for row in range(len(images)):
            logits = head(functional_call(module, weights, (images[row : row + 1].to(problem.device),)))
            # One row, or one of every token which is read; a number is the mean of a Gaussian of unit variance.
            for scores in logits if head.regression else logits.log_softmax(1):
                chances = torch.ones(1) if head.regression else scores.detach().double().exp().cpu()
                for label, chance in self._labels(chances, random):
                    slopes = torch.autograd.grad(scores[label], list(weights.values()), retain_graph=True)
                    for name, slope in zip(weights, slopes):
                        found[name] += chance / len(images) * slope.double().square()
            problem.progress(Event(f"Fisher information of {own.name}", row + 1, len(images), images=1))
        size = sum(t.numel() for t in found.values())
        least = self.floor * sum(float(t.sum()) for t in found.values()) / size
        return {name: t + max(least, torch.finfo(torch.float64).tiny) for name, t in found.items()}

    def _labels(self, chances: Tensor, random: torch.Generator) -> list[tuple[int, float]]:
        """Labels of one image with their weights, which sum to 1."""
        if len(chances) <= self.labels:
            return [(label, float(chance)) for label, chance in enumerate(chances)]
        drawn = torch.multinomial(chances, self.labels, replacement=True, generator=random)
        return [(int(label), 1 / self.labels) for label in drawn]
