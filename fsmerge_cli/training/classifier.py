"""Training of a classifier: first the head on features of the frozen backbone, then all weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.common.errors import DivergedError, TrainingError
from fsmerge_cli.common.hardware import out_of_memory
from fsmerge_cli.common.inputs import Inputs, pixels_of, split
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.common.seeding import derive, seeded
from fsmerge_cli.data.labelled import Pool
from fsmerge_cli.data.views import Augment, new_views
from fsmerge_cli.training.batches import Order
from fsmerge_cli.training.classifier_network import Classifier
from fsmerge_cli.training.criterion import Criterion, count, parts_of, with_label
from fsmerge_cli.training.finetuning_options import TrainingOptions
from fsmerge_cli.training.interrupts import catch_signals
from fsmerge_cli.training.loop import VALIDATIONS
from fsmerge_cli.training.optimizers import matrices_of
from fsmerge_cli.training.regularization import (
    EMA,
    MovingAverage,
    drop_parts,
    keep_all_patches,
    mixed_with_labels,
    randaugmented,
)
from fsmerge_cli.training.snapshots import Snapshots
from fsmerge_cli.training.state import Schedule, Trace, TrainingState

Batches = Callable[[int], Iterator[tuple[Inputs, Tensor]]]
"""First step -> inputs and labels (see `Pool`) of this step and all later ones."""


@dataclass(frozen=True)
class TrainingSetup:
    """Images or texts, their split into training and validation rows, and the options of one training.

    number: whether a number is predicted, in units in which those of the training rows have mean 0 and variance 1.
    """

    pool: Pool
    train: Sequence[int]
    validation: Sequence[int]
    augment: Augment
    options: TrainingOptions
    seed: int
    progress: Progress
    number: bool = False

    @property
    def criterion(self) -> Criterion:
        """How outputs are compared with labels."""
        return Criterion(self.number, self.options.label_smoothing)


def fit(classifier: Classifier, setup: TrainingSetup, snapshots: Snapshots) -> Trace:
    """Train `classifier` in place, head first; each phase ends with its best weights on the validation share.

    A one-cycle schedule, cross-entropy or the squared error, and what `TrainingOptions` adds. Without a validation
    share the last weights are kept. Raises DivergedError where the loss is not finite, TrainingError where one
    image does not fit into memory, Interrupted where the user stops the run.
    """
    options, trace = setup.options, None
    size = min(options.batch_size, len(setup.train))
    if options.head_steps:
        schedule = Schedule(options.head_steps, size, options.head_lr, options.weight_decay, options.clip)
        inputs = _on_features(classifier, setup, size)
        trace = _train("train the head", classifier.head, schedule, *inputs, setup, snapshots)
    if options.steps:
        second = _train_all(classifier, setup, size, snapshots)
        trace = second if trace is None else trace.then(second, ())
    classifier.eval()
    return trace or Trace()


def _train_all(classifier: Classifier, setup: TrainingSetup, size: int, snapshots: Snapshots) -> Trace:
    options, pool = setup.options, setup.pool
    matrix_lr = options.matrix_lr if options.optimizer == "muon" else None
    shape = options.anneal, options.warmup
    schedule = Schedule(options.steps, size, options.lr, options.weight_decay, options.clip, matrix_lr, *shape)
    plain_from = _plain_from(options)
    drop_parts(classifier.backbone, options)

    def batches(first: int) -> Iterator[tuple[Inputs, Tensor]]:
        order = Order(torch.tensor(setup.train), size, setup.seed)
        parts = (order.batch(step).tolist() for step in range(first, options.steps))
        for step, (inputs, classes) in enumerate(pool.batches(parts, size), first):
            views = new_views(inputs, setup.augment, 0.0, setup.seed, step)[0]
            if step >= plain_from:
                keep_all_patches(classifier.backbone)
                yield views, classes
                continue
            if options.randaugment:
                views = randaugmented(pixels_of(views), options.randaugment, setup.seed, step)
            yield mixed_with_labels(views, classes, classifier.head.out_features, options, setup.seed, step)

    def held_out() -> Iterator[tuple[Inputs, Tensor]] | None:
        return pool.all(setup.validation) if setup.validation else None

    return _train("train all", classifier, schedule, batches, held_out, setup, snapshots)


def _plain_from(options: TrainingOptions) -> int:
    """The first step without mixtures and dropped patches."""
    return round(options.steps * (1 - options.plain_share))


HeldOut = Callable[[], Iterator[tuple[Inputs, Tensor]] | None]
"""Inputs and labels of the validation share; None without one."""


def _on_features(classifier: Classifier, setup: TrainingSetup, size: int) -> tuple[Batches, HeldOut]:
    """Batches of features of the frozen backbone, which are captured at the first use.

    Of texts read word by word a row is a word with a tag.
    """
    cached: dict[str, tuple[Tensor, Tensor]] = {}

    def captured(name: str, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        if name not in cached:
            parts, done = [], 0
            hardware, device = setup.pool.hardware, setup.pool.device
            for inputs, labels in setup.pool.all(rows):
                with torch.no_grad(), hardware.autocast(device):
                    parts.append(with_label(classifier.features(inputs).float(), labels))
                done += len(inputs)
                setup.progress(Event(f"features ({name})", done, len(rows), images=1))
            cached[name] = torch.cat([f for f, _ in parts]), torch.cat([c for _, c in parts])
        return cached[name]

    def batches(first: int) -> Iterator[tuple[Inputs, Tensor]]:
        features, labels = captured("training", setup.train)
        order = Order(torch.arange(len(labels)), size, setup.seed)
        for step in range(first, setup.options.head_steps):
            at = order.batch(step).to(labels.device)
            yield features[at], labels[at]

    def held_out() -> Iterator[tuple[Inputs, Tensor]] | None:
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
    options, hardware = setup.options, setup.pool.hardware
    whole = isinstance(module, Classifier)
    matrices = matrices_of(module.backbone) if isinstance(module, Classifier) else ()
    state: Any = TrainingState(module, schedule, matrices)  # type: ignore[arg-type]  # no method of Student is used
    average = MovingAverage(module, options.ema) if options.ema is not None and whole else None
    snapshot = snapshots.next_training()
    if (saved := snapshot.load()) is not None:
        _restore(state, average, *saved)
    forward = hardware.compiled(module)
    every = max(1, schedule.steps // VALIDATIONS)
    first = _plain_from(options) if whole and options.plain_share else 0
    if _ended(state, options.patience, first):
        return _finished(state, average)
    with catch_signals() as stop:
        for step, (inputs, labels) in enumerate(batches(state.step), state.step):
            module.train()
            with seeded(derive(setup.seed, "drop", step), inputs):  # what is dropped, by the global generator
                loss = _gradients(forward, inputs, labels, state, setup)
            nn.utils.clip_grad_norm_(state.parameters, schedule.clip)
            state.losses.append(_finite(loss, step, phase))
            values = {"loss": loss, "lr": state.rate}
            state.advance()
            if average:
                average.update(step)
            last = step + 1 == schedule.steps
            if (step + 1) % every == 0 or last:
                with average.in_place() if average else nullcontext():
                    values |= _validate(state, forward, held_out(), step, phase, setup)
            last = last or _ended(state, options.patience, first)
            setup.progress(Event(phase, step + 1, schedule.steps, values, len(inputs)))
            stops = stop.signal is not None
            due = last or stops or snapshot.due(step + 1)
            saved_now = due and snapshot.save(_tensors(state, average), state.metadata())
            if stops:
                raise stop.error(f"step {step + 1} of {schedule.steps}, {phase}", saved_now)
            if last:
                break
    return _finished(state, average)


def _tensors(state: Any, average: MovingAverage | None) -> dict[str, Tensor]:
    """What a snapshot holds: the state, and the averaged weights."""
    return {**state.tensors(), **(average.tensors() if average else {})}


def _restore(
    state: Any, average: MovingAverage | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(EMA)}
    state.restore({name: tensor for name, tensor in tensors.items() if name not in own}, metadata)
    if average:
        average.restore(own)


def _finished(state: Any, average: MovingAverage | None) -> Trace:
    """The module gets its best weights, or without a validation the last; of the average, where there is one."""
    if average:
        average.load()
    trace: Trace = state.finish()
    return trace


def _ended(state: Any, patience: int | None, first: int) -> bool:
    """Whether all steps are done, or `patience` validations behind step `first` have brought no improvement."""
    since = sum(step > max(state.best[1], first) for step, _ in state.validation) if state.best else 0
    return state.step >= state.steps or (patience is not None and since >= patience)


def _validate(
    state: Any,
    forward: Callable[[Inputs], Tensor],
    held_out: Iterator[tuple[Inputs, Tensor]] | None,
    step: int,
    phase: str,
    setup: TrainingSetup,
) -> dict[str, float]:
    """Record the mean loss on the validation share, which is smoother than the accuracy of few images."""
    if held_out is None:
        return {}
    state.student.eval()
    criterion, total, right, rows = setup.criterion.exact(), 0.0, 0, 0
    with torch.no_grad(), setup.pool.hardware.autocast(setup.pool.device):
        for inputs, labels in held_out:
            outputs = forward(inputs).float()
            total += criterion.loss(outputs, labels).item()
            right += criterion.correct(outputs, labels) or 0
            rows += count(labels)
    state.record_validation([_finite(total / rows, step, phase)], [1.0])
    return {"validation": total / rows, **({} if criterion.number else {"validation top 1": right / rows})}


def _gradients(
    forward: Callable[[Inputs], Tensor], inputs: Inputs, labels: Tensor, state: Any, setup: TrainingSetup
) -> float:
    """Compute the gradients of a batch, out of memory in parts of half the size; the loss of the batch."""
    hardware, device = setup.pool.hardware, setup.pool.device
    rows = count(labels)
    while True:
        size = state.images_at_once or len(inputs)
        try:
            total = torch.zeros((), device=device)
            for part, own in zip(split(inputs, size), parts_of(inputs, labels, size)):
                with hardware.autocast(device):
                    outputs = forward(part)
                loss = setup.criterion.loss(outputs.float(), own)
                (loss / rows).backward()  # type: ignore[no-untyped-call]
                total += loss.detach() / rows
            return float(total.item())
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise TrainingError(ONE_IMAGE if isinstance(inputs, Tensor) else ONE_TEXT) from None
        state.images_at_once = math.ceil(size / 2)
        state.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        setup.progress(Event(f"out of memory: {state.images_at_once} images at a time from now on", 1, 1))


ONE_IMAGE = (
    "out of memory with one image at a time. Pass hardware.checkpointing=true, or a smaller model.input_size or "
    "model.arch."
)
ONE_TEXT = "out of memory with one text at a time. Pass a smaller data.max_length, or a smaller model."


def _finite(loss: float, step: int, phase: str) -> float:
    if not math.isfinite(loss):
        name = "head_lr" if "head" in phase else "lr"
        raise DivergedError(
            f"{phase}: the loss became {loss} at step {step + 1}. Try a third of the learning rate "
            f"(training.{name}=...)."
        )
    return loss
