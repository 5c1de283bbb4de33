"""The training of an ordinary classifier: its head first, on the frozen backbone's features, then all of it."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fsmerge_cli.common.errors import DivergedError, Interrupted, TrainingError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.options import FORBID, Count, NonNegativeFloat, Positive, PositiveFloat, Share
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.images.augment import Augment, renewed
from fsmerge_cli.data.labelled import Pool
from fsmerge_cli.training.batches import Order
from fsmerge_cli.training.interrupts import listening
from fsmerge_cli.training.loop import VALIDATIONS, out_of_memory
from fsmerge_cli.training.snapshots import Keeper
from fsmerge_cli.training.state import Run, Schedule, Trace

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""The first step -> inputs and classes [n] of that step and of all after it."""


@dataclass(frozen=True, config=FORBID)
class Tuning:
    """Fields of the `training` group.

    head_steps: steps of the head alone, on features of the frozen backbone (0: none). steps: steps of all weights
    (0: none, the head alone is trained). head_lr, lr: peaks of their linear one-cycle schedules. batch_size:
    images per step. weight_decay: of AdamW. label_smoothing: share of the target that all classes have in common.
    clip: largest norm of the gradient. patience: how many looks at the validation share (20 per phase) may bring
    nothing new before a phase ends (null: it never ends early).
    """

    head_steps: Count = 300
    steps: Count = 2000
    head_lr: PositiveFloat = 1e-2
    lr: PositiveFloat = 1e-4
    batch_size: Positive = 64
    weight_decay: NonNegativeFloat = 0.05
    label_smoothing: Share = 0.1
    clip: PositiveFloat = 1.0
    patience: Positive | None = 5

    def __post_init__(self) -> None:
        """Something has to be trained."""
        if not self.head_steps and not self.steps:
            raise ValueError("training.head_steps and training.steps are both 0. Give one of them, or both.")


class Tuned(nn.Module):
    """A backbone with its head: images [n, C, H, W] -> logits [n, classes]."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.backbone(pixels))
        return logits


@plain_dataclass(frozen=True)
class Lesson:
    """What a classifier learns from: its images, which of them train and which are held back, and how."""

    pool: Pool
    train: Sequence[int]
    validation: Sequence[int]
    augment: Augment
    options: Tuning
    seed: int
    progress: Progress


def fit(tuned: Tuned, lesson: Lesson, keeper: Keeper) -> Trace:
    """Train `tuned` in place, head first; each phase ends with its best weights on the validation share.

    AdamW with a one-cycle schedule, cross-entropy. Without a validation share the last weights are kept. Raises
    DivergedError where the loss is not finite, TrainingError where memory does not suffice for one image,
    Interrupted where the user asked to stop.
    """
    options, trace = lesson.options, None
    size = min(options.batch_size, len(lesson.train))
    if options.head_steps:
        schedule = Schedule(options.head_steps, size, options.head_lr, options.weight_decay, options.clip)
        inputs = _on_features(tuned, lesson, size)
        trace = _train("train the head", tuned.head, schedule, *inputs, lesson, keeper)
    if options.steps:
        schedule = Schedule(options.steps, size, options.lr, options.weight_decay, options.clip)
        pool, held_back = lesson.pool, lesson.validation

        def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = Order(torch.tensor(lesson.train), size, lesson.seed)
            parts = (order.batch(step).tolist() for step in range(first, options.steps))
            for step, (pixels, classes) in enumerate(pool.batches(parts, size), first):
                yield renewed(pixels, lesson.augment, 0.0, lesson.seed, step)[0], classes

        def held() -> Iterator[tuple[Tensor, Tensor]] | None:
            return pool.all(held_back) if held_back else None

        own = _train("train all", tuned, schedule, batches, held, lesson, keeper)
        trace = own if trace is None else trace.then(own, ())
    tuned.eval()
    return trace or Trace()


Held = Callable[[], Iterator[tuple[Tensor, Tensor]] | None]
"""Inputs and classes of the validation share; None where there is none."""


def _on_features(tuned: Tuned, lesson: Lesson, size: int) -> tuple[Batches, Held]:
    """Batches of the frozen backbone's features, which are computed when the first one is asked for."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def captured(name: str, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        if name not in kept:
            parts, done = [], 0
            hardware, device = lesson.pool.hardware, lesson.pool.device
            for pixels, classes in lesson.pool.all(rows):
                with torch.no_grad(), hardware.autocast(device):
                    parts.append((tuned.backbone(pixels).float(), classes))
                done += len(classes)
                lesson.progress(Event(f"features ({name})", done, len(rows), images=1))
            kept[name] = torch.cat([f for f, _ in parts]), torch.cat([c for _, c in parts])
        return kept[name]

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        features, classes = captured("training", lesson.train)
        order = Order(torch.arange(len(classes)), size, lesson.seed)
        for step in range(first, lesson.options.head_steps):
            at = order.batch(step).to(classes.device)
            yield features[at], classes[at]

    def held() -> Iterator[tuple[Tensor, Tensor]] | None:
        return iter([captured("validation", lesson.validation)]) if lesson.validation else None

    tuned.eval()
    return batches, held


def _train(
    phase: str, module: nn.Module, schedule: Schedule, batches: Batches, held: Held, lesson: Lesson, keeper: Keeper
) -> Trace:
    options, hardware, device = lesson.options, lesson.pool.hardware, lesson.pool.device
    run: Any = Run(module, schedule)  # type: ignore[arg-type]  # of a student it needs what every module has
    stage = keeper.stage()
    if (saved := stage.load()) is not None:
        run.restore(*saved)
    forward = hardware.compiled(module)
    every = max(1, schedule.steps // VALIDATIONS)
    if _ended(run, options.patience):
        return _finished(run)
    with listening() as asked:
        for step, (inputs, classes) in enumerate(batches(run.step), run.step):
            module.train()
            loss = _gradients(forward, inputs, classes, run, lesson)
            nn.utils.clip_grad_norm_(run.parameters, schedule.clip)
            run.losses.append(_finite(loss, step, phase))
            values = {"loss": loss, "lr": run.rate}
            run.advance()
            last = step + 1 == schedule.steps
            if (step + 1) % every == 0 or last:
                values |= _validate(run, forward, held(), step, phase, hardware, device)
            last = last or _ended(run, options.patience)
            lesson.progress(Event(phase, step + 1, schedule.steps, values, len(classes)))
            if last or asked.signal is not None or stage.due(step + 1):
                stage.save(run.tensors(), run.facts())
            if asked.signal is not None:
                raise Interrupted(f"step {step + 1} of {schedule.steps} ({phase})", asked.signal or signal.SIGINT)
            if last:
                break
    return _finished(run)


def _finished(run: Any) -> Trace:
    trace: Trace = run.finish()
    return trace


def _ended(run: Any, patience: int | None) -> bool:
    """Whether all steps are done, or the validation share has said for too long that nothing gets better."""
    since = sum(step > run.best[1] for step, _ in run.seen) if run.best else 0
    return run.step >= run.steps or (patience is not None and since >= patience)


def _validate(
    run: Any,
    forward: Callable[[Tensor], Tensor],
    held: Iterator[tuple[Tensor, Tensor]] | None,
    step: int,
    phase: str,
    hardware: Hardware,
    device: torch.device,
) -> dict[str, float]:
    """Note the mean cross-entropy on the validation share: smoother than the accuracy where that is small."""
    if held is None:
        return {}
    run.student.eval()
    total = right = count = 0.0
    with torch.no_grad(), hardware.autocast(device):
        for inputs, classes in held:
            logits = forward(inputs).float()
            total += F.cross_entropy(logits, classes, reduction="sum").item()
            right += (logits.argmax(1) == classes).sum().item()
            count += len(classes)
    run.validated([_finite(total / count, step, phase)], [1.0])
    return {"validation": total / count, "validation top 1": right / count}


def _gradients(
    forward: Callable[[Tensor], Tensor], inputs: Tensor, classes: Tensor, run: Any, lesson: Lesson
) -> float:
    """Gradients of a batch; where memory does not suffice, in parts of half the size. The batch's loss."""
    hardware, device = lesson.pool.hardware, lesson.pool.device
    while True:
        size = run.part or len(classes)
        try:
            total = torch.zeros((), device=device)
            for part, wanted in zip(torch.split(inputs, size), torch.split(classes, size)):
                with hardware.autocast(device):
                    logits = forward(part)
                smoothing = lesson.options.label_smoothing
                loss = F.cross_entropy(logits.float(), wanted, label_smoothing=smoothing, reduction="sum")
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
        run.part = math.ceil(size / 2)
        run.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        lesson.progress(Event(f"out of memory: {run.part} images at a time from here on", 1, 1))


def _finite(loss: float, step: int, phase: str) -> float:
    if not math.isfinite(loss):
        name = "head_lr" if "head" in phase else "lr"
        raise DivergedError(
            f"{phase}: the loss became {loss} at step {step + 1}. Try a third of the learning rate "
            f"(training.{name}=...)."
        )
    return loss
