"""What methods share that find coefficients of task vectors by descent on unlabelled inputs of every task."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.func import functional_call

from fsmerge_cli.alignment.matching import require_heads
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.options import FORBID, BatchSize, Count, PositiveFloat
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.common.shown import listed
from fsmerge_cli.methods.task_vectors.vectors import Density, TaskVectorMethod, TaskVectors
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import batches, network
from fsmerge_cli.training.variances import variances


@dataclass(frozen=True, config=FORBID)
class Tuned(TaskVectorMethod, ABC):
    """Abstract: coefficients c_il of task vectors t_il, by Adam on unlabelled inputs.

    per: tensor (layer-wise, one coefficient per task and tensor) or task. start: of every coefficient. steps, lr:
    of Adam. batch_size: images per task and step.
    """

    uses_images: ClassVar[bool] = True

    per: Literal["tensor", "task"] = "tensor"
    start: Density = 0.3
    steps: Count = 500
    lr: PositiveFloat = 1e-3
    batch_size: BatchSize = 16

    def check(self, problem: Problem) -> None:
        """Raise UserError where a source has no head, a task has no images, or widths differ."""
        super().check(problem)
        require_heads(problem, self.name)
        problem.require_task_images()

    def initial(self, tuning: Tuning, value: float) -> Tensor:
        """Equal coefficients [k, tensors or 1], to be trained."""
        columns = len(tuning.names) if self.per == "tensor" else 1
        shape = len(tuning.problem.sources), columns
        return torch.full(shape, value, device=tuning.problem.device, requires_grad=True)


class Tuning:
    """The base, the task vectors and the merged network in fp32, and batches of the inputs of every task."""

    def __init__(self, vectors: TaskVectors, name: str, batch_size: int) -> None:
        self.vectors, self.problem, self.names = vectors, vectors.running, vectors.names
        self.base = {n: vectors.base(n).float() for n in self.names}
        self.moves = {n: vectors.of(n).float() for n in self.names}
        problem, size = self.problem, range(len(self.problem.sources))
        self.heads = [source.head.to(problem.device) for source in problem.sources if source.head is not None]
        self.module = problem.plan.skeleton()
        self._batch_size = batch_size
        self._tasks = [problem.task_images(i) for i in size]
        self._draws = [generator(problem.seed, name, task) for task in problem.plan.tasks]
        others = vectors.solution(lambda name, own: own[0]).weights
        self._fixed = {n: t for n, t in others.items() if n not in self.names}

    def batch(self) -> list[Inputs]:
        """Random inputs of every task, on the device."""
        rows = [
            torch.randint(len(own), (self._batch_size,), generator=random)
            for own, random in zip(self._tasks, self._draws)
        ]
        return [own[row].to(self.problem.device) for own, row in zip(self._tasks, rows)]

    def weights(self, coefficients: Tensor, masks: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """W_0 + m sum_i c_i t_i of every tensor, for coefficients [k, tensors or 1]; masks: m by tensor.

        Of a network that runs on the images.
        """
        found = dict(self._fixed)
        for name, own in zip(self.names, coefficients.expand(-1, len(self.names)).T):
            move = torch.tensordot(own, self.moves[name], 1)
            found[name] = self.base[name] + (move if masks is None else masks[name] * move)
        return self.vectors.running_weights(found)

    def logits(self, weights: Mapping[str, Tensor], batches: Sequence[Inputs]) -> list[Tensor]:
        """Of the merged network on the inputs of every task, with the head of its source."""
        return [self.logits_of(i, weights, own) for i, own in enumerate(batches)]

    def logits_of(self, source: int, weights: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Of the merged network on inputs of one task."""
        return self.heads[source](functional_call(self.module, dict(weights), (inputs,)))

    def solution(self, coefficients: Tensor, masks: Mapping[str, Tensor] | None = None) -> Solution:
        """The merged model in fp64; the mean coefficient of every task is reported."""
        found = coefficients.detach().double()
        columns = dict(zip(self.names, found.expand(-1, len(self.names)).T))
        facts = {f"coefficient of {t}": float(own.mean()) for t, own in zip(self.problem.plan.tasks, found)}

        def merged(name: str, own: Tensor) -> Tensor:
            move: Tensor = torch.tensordot(columns[name], own, 1)
            return move if masks is None else masks[name].double() * move

        return self.vectors.solution(merged, **facts)


def entropy(tuning: Tuning, weights: Mapping[str, Tensor], batches: Sequence[Inputs]) -> Tensor:
    """The sum over the tasks of the mean entropy of the predictions, in nats."""
    scores = [own.log_softmax(-1) for own in tuning.logits(weights, batches)]
    return torch.stack([-(own.exp() * own).sum(-1).mean() for own in scores]).sum()


def number_variances(problem: Problem) -> list[float]:
    """Variance of the numbers that each source predicts for the inputs of its task; 1 for sources of classes."""
    found = []
    for i, source in enumerate(problem.sources):
        head, inputs, value = source.head, problem.task_images(i), 1.0
        if head is not None and head.regression:
            module, own = network(source, problem.device), head.to(problem.device)
            with torch.no_grad():
                parts = [
                    own(module(inputs[rows].to(problem.device)))
                    for rows in batches(len(inputs), problem.hardware.eval_batch)
                ]
            value, _ = variances(parts, source)
        found.append(value)
    return found


def require_classes(problem: Problem, method: str) -> None:
    """Raise ConfigError for sources that predict a number, which has no entropy."""
    if numbers := [own.name for own in problem.sources if own.head is not None and own.head.regression]:
        raise ConfigError(
            f"method={method} minimises the entropy of predicted classes, and {listed(numbers)} predict a number. "
            "Take another method."
        )


def descend(adam: torch.optim.Adam, loss: Tensor) -> None:
    """One step of Adam down a loss."""
    adam.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    adam.step()


MIXED = (
    "minimises the entropy of each head on images of its own task, and it is not known which these are. "
    "Folders named after the tasks avoid it"
)
"""`Method.mixed_images` of methods with the entropy."""
