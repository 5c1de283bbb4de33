"""AdaMerging (Yang et al., arXiv 2310.02575): coefficients that minimise the entropy of the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.func import functional_call

from fsmerge_cli.alignment.matching import require_heads
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.options import FORBID, BatchSize, Count, PositiveFloat
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.common.shown import listed
from fsmerge_cli.methods.task_vectors.vectors import Density, TaskVectorMethod, TaskVectors
from fsmerge_cli.models.head import Head
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class AdaMerging(TaskVectorMethod):
    """W'_l = W_0,l + sum_i c_il t_il with coefficients c in 0..1 that minimise the entropy of the predictions.

    The entropy is that of the merged model with the head of source i on unlabelled images of task i, summed over
    the tasks. per: tensor (layer-wise, one coefficient per task and tensor) or task. start: of every coefficient.
    steps, lr: of Adam. batch_size: images per task and step.
    """

    uses_images: ClassVar[bool] = True
    mixed_images: ClassVar[str] = (
        "minimises the entropy of each head on images of its own task, and it is not known which these are. "
        "Folders named after the tasks avoid it"
    )

    name: Literal["ada_merging"] = "ada_merging"
    per: Literal["tensor", "task"] = "tensor"
    start: Density = 0.3
    steps: Count = 500
    lr: PositiveFloat = 1e-3
    batch_size: BatchSize = 16

    def check(self, problem: Problem) -> None:
        """Raise UserError where a source has no head, a task has no images, or widths differ."""
        super().check(problem)
        require_heads(problem, self.name)
        if numbers := [own.name for own in problem.sources if own.head is not None and own.head.regression]:
            raise ConfigError(
                f"method={self.name} minimises the entropy of predicted classes, and {listed(numbers)} "
                "predict a number. Take another method."
            )
        problem.require_task_images()

    def merge(self, vectors: TaskVectors) -> Solution:
        """Adam on the coefficients; base, task vectors and one merged network are in memory, in fp32."""
        problem, names = vectors.problem, vectors.names
        base = {name: vectors.base(name).float() for name in names}
        moves = {name: vectors.of(name).float() for name in names}
        places = {name: place if self.per == "tensor" else 0 for place, name in enumerate(names)}
        k, columns = len(problem.sources), max(places.values()) + 1
        found = torch.full((k, columns), self.start, device=problem.device, requires_grad=True)
        adam = torch.optim.Adam([found], lr=self.lr)
        draws = [generator(problem.seed, "ada_merging", task) for task in problem.plan.tasks]
        tasks = [problem.task_images(i) for i in range(k)]
        heads = [source.head.to(problem.device) for source in problem.sources if source.head is not None]
        fixed = {n: t for n, t in vectors.solution(lambda name, own: own[0]).weights.items() if n not in names}
        module = problem.plan.skeleton()
        for step in range(self.steps):
            rows = [
                torch.randint(len(own), (self.batch_size,), generator=random) for own, random in zip(tasks, draws)
            ]
            batch = [own[row].to(problem.device) for own, row in zip(tasks, rows)]
            weights = {n: combined(base[n], moves[n], found[:, places[n]]) for n in names}
            loss = entropy(module, {**fixed, **weights}, heads, batch)
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            problem.progress(Event("coefficients", step + 1, self.steps, {"entropy": loss.item()}))
        chosen = found.detach().clamp(0, 1).double()
        facts = {f"coefficient of {task}": float(own.mean()) for task, own in zip(problem.plan.tasks, chosen)}
        return vectors.solution(
            lambda name, own: torch.tensordot(chosen[:, places[name]], own, 1),
            **facts,
        )


def combined(base: Tensor, moves: Tensor, coefficients: Tensor) -> Tensor:
    """W_0 + sum_i c_i t_i with the coefficients [k] clamped to 0..1."""
    found: Tensor = base + torch.tensordot(coefficients.clamp(0, 1), moves, 1)
    return found


def entropy(
    module: nn.Module, weights: Mapping[str, Tensor], heads: Sequence[Head], batches: Sequence[Inputs]
) -> Tensor:
    """The sum over the tasks of the mean entropy of the predictions, in nats."""
    logits = [head(functional_call(module, dict(weights), (own,))) for head, own in zip(heads, batches)]
    scores = [own.log_softmax(-1) for own in logits]
    return torch.stack([-(own.exp() * own).sum(-1).mean() for own in scores]).sum()
