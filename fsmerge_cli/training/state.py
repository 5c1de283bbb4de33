"""The state of a training between two steps, and the record of a finished one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fsmerge_cli.common.errors import DivergedError
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.optimizers import optimisers


@dataclass(frozen=True)
class Schedule:
    """steps; batch_size (images); lr at the peak of a one-cycle; weight_decay; clip (gradient norm).

    matrix_lr: peak for matrices between hidden units, which Muon trains (None: AdamW trains all parameters).
    anneal: linear or cosine; warmup: share of the steps until the peak.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    clip: float
    matrix_lr: float | None = None
    anneal: Literal["linear", "cosine"] = "linear"
    warmup: float = 0.3


@dataclass(frozen=True)
class Trace:
    """The record of a training.

    loss: per step. validation: (step, loss) on the validation share. chosen_step: the step whose weights were
    kept. start_error: relative squared error of the features before the first step, per source. trainable: number
    of trainable parameters. images_at_once: size of the parts of a batch that did not fit into memory (0: all
    batches did). lr: peak learning rate of the successful attempt. restarts: how often the training diverged and
    was restarted with half the learning rate. feature_part: (step, error of the features) on the validation share,
    where the loss has other parts as well.
    """

    loss: tuple[float, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    chosen_step: int = 0
    start_error: tuple[float, ...] = ()
    trainable: int = 0
    images_at_once: int = 0
    lr: float | None = None
    restarts: int = 0
    feature_part: tuple[tuple[int, float], ...] = ()

    def then(self, stage: Trace, start_error: tuple[float, ...]) -> Trace:
        """Both trainings as one; `stage` started from the end of this one.

        lr, restarts: of the training with more restarts.
        """
        restarted = stage if self.lr is None or stage.restarts > self.restarts else self
        return Trace(
            loss=self.loss + stage.loss,
            validation=self.validation + tuple((len(self.loss) + s, e) for s, e in stage.validation),
            feature_part=self.feature_part + tuple((len(self.loss) + s, e) for s, e in stage.feature_part),
            chosen_step=len(self.loss) + stage.chosen_step,
            start_error=start_error,
            trainable=self.trainable + stage.trainable,
            images_at_once=max(self.images_at_once, stage.images_at_once),
            lr=restarted.lr,
            restarts=restarted.restarts,
        )


class TrainingState:
    """All that the next step depends on, except for the frozen sources and the data.

    images_at_once: size of the parts in which a batch is computed (0: the whole batch of this process).
    """

    def __init__(self, student: Student, schedule: Schedule, matrices: Sequence[nn.Parameter] = ()) -> None:
        self.student = student
        self.steps, self.lr = schedule.steps, schedule.lr
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        # A snapshot is contiguous. A fused optimiser pairs elements by their place in memory, so the moments of a
        # restored state would meet other elements of a parameter with other strides.
        for parameter in self.parameters:
            parameter.data = parameter.data.contiguous()
        rate = schedule.matrix_lr
        # OneCycleLR divides by the number of steps before the peak less one: no warm-up instead of one step of it.
        warmup = 0.0 if schedule.warmup * schedule.steps == 1 else schedule.warmup
        self._optimisers = optimisers(
            self.parameters, matrices if rate else (), schedule.lr, rate or 0.0, schedule.weight_decay
        )
        self._cycles = [
            torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                optimiser.param_groups[0]["lr"],
                total_steps=schedule.steps,
                anneal_strategy="linear" if schedule.anneal == "linear" else "cos",
                pct_start=warmup,
                cycle_momentum=False,
            )
            for optimiser in self._optimisers
        ]
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.feature_part: list[tuple[int, float]] = []
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.start_error: tuple[float, ...] = ()
        self.images_at_once = 0

    @property
    def rate(self) -> float:
        """Learning rate of the next step: that of AdamW, or of Muon where AdamW trains nothing."""
        return float(self._optimisers[0].param_groups[0]["lr"])

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return len(self.losses)

    def advance(self) -> None:
        """Take an optimiser step and a scheduler step, then clear the gradients."""
        for optimiser, cycle in zip(self._optimisers, self._cycles):
            optimiser.step()
            cycle.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)

    def record_validation(
        self,
        errors: Sequence[float],
        task_weights: Sequence[float],
        keep_best: bool = True,
        features: Sequence[float] | None = None,
    ) -> None:
        """Record the errors on the validation share after the last step; features: their part of the features.

        keep_best: also keep the weights where they are the best so far; otherwise the last weights are kept.
        """
        error = finite(_mean(errors, task_weights), self.step - 1)
        self.validation.append((self.step, error))
        if features is not None:
            self.feature_part.append((self.step, _mean(features, task_weights)))
        if keep_best and (self.best is None or error < self.best[0]):
            self.best = error, self.step, {n: t.detach().clone() for n, t in self.student.state_dict().items()}

    def finish(self) -> Trace:
        """Load the best weights into the student; the record of the training."""
        if self.best is not None:
            self.student.load_state_dict(self.best[2])
        chosen = self.best[1] if self.best else self.steps
        trainable = sum(p.numel() for p in self.parameters)
        return Trace(
            tuple(self.losses),
            tuple(self.validation),
            chosen,
            self.start_error,
            trainable,
            self.images_at_once,
            self.lr,
            feature_part=tuple(self.feature_part),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by name."""
        found = {f"student.{name}": t for name, t in self.student.state_dict().items()}
        found |= {f"best.{name}": t for name, t in (self.best[2] if self.best else {}).items()}
        for number, optimiser in enumerate(self._optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                found |= {f"optimiser.{number}.{index}.{name}": t for name, t in state.items()}
        return found

    def metadata(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""
        rates = [optimiser.param_groups[0]["lr"] for optimiser in self._optimisers]
        best = self.best and list(self.best[:2])
        names = ("step", "steps", "losses", "validation", "feature_part", "start_error", "images_at_once")
        return {**{n: getattr(self, n) for n in names}, "best": best, "rates": rates}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Load the results of `tensors()` and `metadata()`."""
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
        self.losses = list(metadata["losses"])
        self.validation = [(step, error) for step, error in metadata["validation"]]
        self.feature_part = [(step, error) for step, error in metadata.get("feature_part", ())]
        self.start_error, self.images_at_once = tuple(metadata["start_error"]), metadata["images_at_once"]
        device = next(iter(self.parameters)).device
        if metadata["best"]:
            self.best = (*metadata["best"], {n: t.to(device) for n, t in parts["best"].items()})
        for optimiser, cycle, rate in zip(self._optimisers, self._cycles, metadata["rates"]):
            cycle.last_epoch = self.step
            optimiser.param_groups[0]["lr"] = rate


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean of the values that are not NaN."""
    finite = [(w * v, w) for v, w in zip(values, weights) if not math.isnan(v)]
    return sum(v for v, _ in finite) / sum(w for _, w in finite) if finite else math.nan


def finite(loss: float, step: int) -> float:
    """Return the loss; raise DivergedError where it is not finite."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss became {loss} at step {step + 1}. Try a third of the learning rate (method.lr=...), "
            "maps of lower rank, or method.retries=2, which restarts with half the learning rate."
        )
    return loss
