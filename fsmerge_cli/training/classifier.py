"""Training of a classifier: first the head on features of the frozen backbone, then all weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fsmerge_cli.common.errors import DivergedError, TrainingError
from fsmerge_cli.common.hardware import Hardware, out_of_memory
from fsmerge_cli.common.options import FORBID, BatchSize, Count, NonNegativeFloat, Positive, PositiveFloat, Share
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.images.augment import Augment, new_views
from fsmerge_cli.data.labelled import Pool
from fsmerge_cli.training.batches import Order
from fsmerge_cli.training.interrupts import catch_signals
from fsmerge_cli.training.loop import VALIDATIONS
from fsmerge_cli.training.snapshots import Snapshots
from fsmerge_cli.training.state import Schedule, Trace, TrainingState

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""First step -> inputs and classes [n] of this step and all later ones."""


@dataclass(frozen=True, config=FORBID)
class TrainingOptions:
    """Fields of the `training` group.

    head_steps: steps that train only the head, on features of the frozen backbone (0: none). steps: steps that
    train all weights (0: none, only the head is trained). head_lr, lr: peaks of their linear one-cycle schedules.
    batch_size: images per step. weight_decay: of AdamW. label_smoothing: share of the target that is spread evenly
    over all classes. clip: largest norm of the gradient. patience: a phase ends early after this many validations
    (of 20 per phase) without improvement (null: never).
    """

    head_steps: Count = 300
    steps: Count = 2000
    head_lr: PositiveFloat = 1e-2
    lr: PositiveFloat = 1e-4
    batch_size: BatchSize = 64
    weight_decay: NonNegativeFloat = 0.05
    label_smoothing: Share = 0.1
    clip: PositiveFloat = 1.0
    patience: Positive | None = 5

    def __post_init__(self) -> None:
        """Check that there is a step."""
        if not self.head_steps and not self.steps:
            raise ValueError("training.head_steps and training.steps are both 0. Give one of them, or both.")


class Classifier(nn.Module):
    """A backbone with a head: images [n, C, H, W] -> logits [n, classes]."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.backbone(pixels))
        return logits


@plain_dataclass(frozen=True)
class TrainingSetup:
    """Images, their split into training and validation rows, and the options of one training."""

    pool: Pool
    train: Sequence[int]
    validation: Sequence[int]
    augment: Augment
    options: TrainingOptions
    seed: int
    progress: Progress


def fit(classifier: Classifier, setup: TrainingSetup, snapshots: Snapshots) -> Trace:
    """Train `classifier` in place, head first; each phase ends with its best weights on the validation share.

    AdamW with a one-cycle schedule, cross-entropy. Without a validation share the last weights are kept. Raises
    DivergedError where the loss is not finite, TrainingError where one image does not fit into memory,
    Interrupted where the user stops the run.
    """
    options, trace = setup.options, None
    size = min(options.batch_size, len(setup.train))
    if options.head_steps:
        schedule = Schedule(options.head_steps, size, options.head_lr, options.weight_decay, options.clip)
        inputs = _on_features(classifier, setup, size)
        trace = _train("train the head", classifier.head, schedule, *inputs, setup, snapshots)
    if options.steps:
        schedule = Schedule(options.steps, size, options.lr, options.weight_decay, options.clip)
        pool, validation = setup.pool, setup.validation

        def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = Order(torch.tensor(setup.train), size, setup.seed)
            parts = (order.batch(step).tolist() for step in range(first, options.steps))
            for step, (pixels, classes) in enumerate(pool.batches(parts, size), first):
                yield new_views(pixels, setup.augment, 0.0, setup.seed, step)[0], classes

        def held_out() -> Iterator[tuple[Tensor, Tensor]] | None:
            return pool.all(validation) if validation else None

        second = _train("train all", classifier, schedule, batches, held_out, setup, snapshots)
        trace = second if trace is None else trace.then(second, ())
    classifier.eval()
    return trace or Trace()


HeldOut = Callable[[], Iterator[tuple[Tensor, Tensor]] | None]
"""Inputs and classes of the validation share; None without one."""


def _on_features(classifier: Classifier, setup: TrainingSetup, size: int) -> tuple[Batches, HeldOut]:
    """Batches of features of the frozen backbone, which are captured at the first use."""
    cached: dict[str, tuple[Tensor, Tensor]] = {}

    def captured(name: str, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        if name not in cached:
            parts, done = [], 0
            hardware, device = setup.pool.hardware, setup.pool.device
            for pixels, classes in setup.pool.all(rows):
                with torch.no_grad(), hardware.autocast(device):
                    parts.append((classifier.backbone(pixels).float(), classes))
                done += len(classes)
                setup.progress(Event(f"features ({name})", done, len(rows), images=1))
            cached[name] = torch.cat([f for f, _ in parts]), torch.cat([c for _, c in parts])
        return cached[name]

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        features, classes = captured("training", setup.train)
        order = Order(torch.arange(len(classes)), size, setup.seed)
        for step in range(first, setup.options.head_steps):
            at = order.batch(step).to(classes.device)
            yield features[at], classes[at]

    def held_out() -> Iterator[tuple[Tensor, Tensor]] | None:
        return iter([captured("validation", setup.validation)]) if setup.validation else None

    classifier.eval()
    return batches, held_out


def _train(
    phase: str,
    module: nn.Module,
    schedule: Schedule,
    batches: Batches,
    held_out: HeldOut,
    setup: TrainingSetup,
    snapshots: Snapshots,
) -> Trace:
    options, hardware, device = setup.options, setup.pool.hardware, setup.pool.device
    state: Any = TrainingState(module, schedule)  # type: ignore[arg-type]  # it needs no method of Student
    snapshot = snapshots.next_training()
    if (saved := snapshot.load()) is not None:
        state.restore(*saved)
    forward = hardware.compiled(module)
    every = max(1, schedule.steps // VALIDATIONS)
    if _ended(state, options.patience):
        return _finished(state)
    with catch_signals() as stop:
        for step, (inputs, classes) in enumerate(batches(state.step), state.step):
            module.train()
            loss = _gradients(forward, inputs, classes, state, setup)
            nn.utils.clip_grad_norm_(state.parameters, schedule.clip)
            state.losses.append(_finite(loss, step, phase))
            values = {"loss": loss, "lr": state.rate}
            state.advance()
            last = step + 1 == schedule.steps
            if (step + 1) % every == 0 or last:
                values |= _validate(state, forward, held_out(), step, phase, hardware, device)
            last = last or _ended(state, options.patience)
            setup.progress(Event(phase, step + 1, schedule.steps, values, len(classes)))
            stops = stop.signal is not None
            due = last or stops or snapshot.due(step + 1)
            saved_now = due and snapshot.save(state.tensors(), state.metadata())
            if stops:
                raise stop.error(f"step {step + 1} of {schedule.steps}, {phase}", saved_now)
            if last:
                break
    return _finished(state)


def _finished(state: Any) -> Trace:
    trace: Trace = state.finish()
    return trace


def _ended(state: Any, patience: int | None) -> bool:
    """Whether all steps are done, or `patience` validations have brought no improvement."""
    since = sum(step > state.best[1] for step, _ in state.validation) if state.best else 0
    return state.step >= state.steps or (patience is not None and since >= patience)


def _validate(
    state: Any,
    forward: Callable[[Tensor], Tensor],
    held_out: Iterator[tuple[Tensor, Tensor]] | None,
    step: int,
    phase: str,
    hardware: Hardware,
    device: torch.device,
) -> dict[str, float]:
    """Record the mean cross-entropy on the validation share, which is smoother than the accuracy of few images."""
    if held_out is None:
        return {}
    state.student.eval()
    total = correct = count = 0.0
    with torch.no_grad(), hardware.autocast(device):
        for inputs, classes in held_out:
            logits = forward(inputs).float()
            total += F.cross_entropy(logits, classes, reduction="sum").item()
            correct += (logits.argmax(1) == classes).sum().item()
            count += len(classes)
    state.record_validation([_finite(total / count, step, phase)], [1.0])
    return {"validation": total / count, "validation top 1": correct / count}


def _gradients(
    forward: Callable[[Tensor], Tensor], inputs: Tensor, classes: Tensor, state: Any, setup: TrainingSetup
) -> float:
    """Compute the gradients of a batch, out of memory in parts of half the size; the loss of the batch."""
    hardware, device = setup.pool.hardware, setup.pool.device
    while True:
        size = state.images_at_once or len(classes)
        try:
            total = torch.zeros((), device=device)
            for part, target in zip(torch.split(inputs, size), torch.split(classes, size)):
                with hardware.autocast(device):
                    logits = forward(part)
                smoothing = setup.options.label_smoothing
                loss = F.cross_entropy(logits.float(), target, label_smoothing=smoothing, reduction="sum")
                (loss / len(classes)).backward()  # type: ignore[no-untyped-call]
                total += loss.detach() / len(classes)
            return float(total.item())
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise TrainingError(
                    "out of memory with one image at a time. Pass hardware.checkpointing=true, or a smaller "
                    "model.input_size or model.arch."
                ) from None
        state.images_at_once = math.ceil(size / 2)
        state.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        setup.progress(Event(f"out of memory: {state.images_at_once} images at a time from now on", 1, 1))


def _finite(loss: float, step: int, phase: str) -> float:
    if not math.isfinite(loss):
        name = "head_lr" if "head" in phase else "lr"
        raise DivergedError(
            f"{phase}: the loss became {loss} at step {step + 1}. Try a third of the learning rate "
            f"(training.{name}=...)."
        )
    return loss
