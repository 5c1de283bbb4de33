"""A training between two steps: what it has done, and all that its next step depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.common.errors import DivergedError
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.optimizers import optimisers


@dataclass(frozen=True)
class Schedule:
    """steps; batch_size (images); lr at the peak of a linear one-cycle; weight_decay; clip (gradient norm).

    matrix_lr: peak for matrices between hidden units, which Muon trains; None: AdamW trains them like all else.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    clip: float
    matrix_lr: float | None = None


@dataclass(frozen=True)
class Trace:
    """What happened in a training.

    loss: per step. validation: (step, loss) on the validation share. chosen_step: whose weights were kept.
    start_error: relative squared error of the features before the first step, per source. trainable: how many
    numbers were trained. part: images computed at once, where memory did not suffice for a batch (0: it did). lr:
    of the attempt that ended well. halved: how many attempts did not.
    """

    loss: tuple[float, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    chosen_step: int = 0
    start_error: tuple[float, ...] = ()
    trainable: int = 0
    part: int = 0
    lr: float | None = None
    halved: int = 0

    def then(self, stage: Trace, start_error: tuple[float, ...]) -> Trace:
        """Both trainings as one: the other went on from where this one ended.

        lr: of the one that took more attempts, which is what there is to be said about it.
        """
        slowed = stage if self.lr is None or stage.halved > self.halved else self
        return Trace(
            loss=self.loss + stage.loss,
            validation=self.validation + tuple((len(self.loss) + s, e) for s, e in stage.validation),
            chosen_step=len(self.loss) + stage.chosen_step,
            start_error=start_error,
            trainable=self.trainable + stage.trainable,
            part=max(self.part, stage.part),
            lr=slowed.lr,
            halved=slowed.halved,
        )


class Run:
    """A training between two steps: all that the next one depends on, but for the frozen sources and the data.

    part: how many images are computed at once (0: the whole share of the batch).
    """

    def __init__(self, student: Student, schedule: Schedule, matrices: Sequence[nn.Parameter] = ()) -> None:
        self.student = student
        self.steps, self.lr = schedule.steps, schedule.lr
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        rate = schedule.matrix_lr
        self._optimisers = optimisers(
            self.parameters, matrices if rate else (), schedule.lr, rate or 0.0, schedule.weight_decay
        )
        self._cycles = [
            torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                optimiser.param_groups[0]["lr"],
                total_steps=schedule.steps,
                anneal_strategy="linear",
                cycle_momentum=False,
            )
            for optimiser in self._optimisers
        ]
        self.losses: list[float] = []
        self.seen: list[tuple[int, float]] = []
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.start: tuple[float, ...] = ()
        self.part = 0

    @property
    def rate(self) -> float:
        """Of the next step; that of AdamW, where it trains anything."""
        return float(self._optimisers[0].param_groups[0]["lr"])

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    def advance(self) -> None:
        """Take the step that the gradients ask for."""
        for optimiser, cycle in zip(self._optimisers, self._cycles):
            optimiser.step()
            cycle.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)

    def validated(self, errors: Sequence[float], task_weights: Sequence[float], choosing: bool = True) -> None:
        """Note the errors on the validation share after the last step, and its weights if they are the best.

        choosing: among several of them; otherwise the last weights are kept.
        """
        error = finite(_mean(errors, task_weights), self.step - 1)
        self.seen.append((self.step, error))
        if choosing and (self.best is None or error < self.best[0]):
            self.best = error, self.step, {n: t.detach().clone() for n, t in self.student.state_dict().items()}

    def finish(self) -> Trace:
        """Leave the student with its best weights."""
        if self.best is not None:
            self.student.load_state_dict(self.best[2])
        chosen = self.best[1] if self.best else self.steps
        trainable = sum(p.numel() for p in self.parameters)
        return Trace(tuple(self.losses), tuple(self.seen), chosen, self.start, trainable, self.part, self.lr)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name."""
        found = {f"student.{name}": t for name, t in self.student.state_dict().items()}
        found |= {f"best.{name}": t for name, t in (self.best[2] if self.best else {}).items()}
        for number, optimiser in enumerate(self._optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                found |= {f"optimiser.{number}.{index}.{name}": t for name, t in state.items()}
        return found

    def facts(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        rates = [optimiser.param_groups[0]["lr"] for optimiser in self._optimisers]
        best = self.best and list(self.best[:2])
        names = ("step", "steps", "losses", "seen", "start", "part")
        return {**{n: getattr(self, n) for n in names}, "best": best, "rates": rates}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Be as `tensors` and `facts` say."""
        parts: dict[str, dict[str, Tensor]] = {"student": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.student.load_state_dict(parts["student"])
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._optimisers]
        for name, tensor in parts["optimiser"].items():
            number, index, key = name.split(".", 2)
            states[int(number)].setdefault(int(index), {})[key] = tensor
        for optimiser, state in zip(self._optimisers, states):
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        self.losses = list(facts["losses"])
        self.seen = [(step, error) for step, error in facts["seen"]]
        self.start, self.part = tuple(facts["start"]), facts["part"]
        device = next(iter(self.parameters)).device
        if facts["best"]:
            self.best = (*facts["best"], {n: t.to(device) for n, t in parts["best"].items()})
        for optimiser, cycle, rate in zip(self._optimisers, self._cycles, facts["rates"]):
            cycle.last_epoch = self.step
            optimiser.param_groups[0]["lr"] = rate


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean of the values that are numbers."""
    finite = [(w * v, w) for v, w in zip(values, weights) if not math.isnan(v)]
    return sum(v for v, _ in finite) / sum(w for _, w in finite) if finite else math.nan


def finite(loss: float, step: int) -> float:
    """The same loss; raises DivergedError where it is not finite."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss became {loss} at step {step + 1}. Try a third of the learning rate (method.lr=...), "
            "maps of lower rank, or method.retries=2 to begin again with half of it by itself."
        )
    return loss
