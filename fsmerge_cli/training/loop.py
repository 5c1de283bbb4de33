"""The training loop shared by all methods that train: same batches, loss, steps and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fsmerge_cli.common.distributed import SINGLE_PROCESS, World
from fsmerge_cli.common.errors import ConfigError, TrainingError
from fsmerge_cli.common.hardware import Hardware, out_of_memory, with_fp64
from fsmerge_cli.common.inputs import feature_rows, per_feature
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.transfer import Feed
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.batches import Batches, Order, ViewOptions
from fsmerge_cli.training.graphs import graphed
from fsmerge_cli.training.interrupts import catch_signals
from fsmerge_cli.training.objective import Batch, LossWeights, StepLoss, source_error
from fsmerge_cli.training.snapshots import Snapshots
from fsmerge_cli.training.state import Schedule, Trace, TrainingState, finite
from fsmerge_cli.training.teachers import TeacherTargets

PLAIN, FEATURES_ONLY = ViewOptions(), LossWeights()
"""No augmentation; only the feature loss."""

Phase = Literal["whole", "first", "second"]

VALIDATIONS = 20
"""How often a training is validated."""


def train(
    student: Student,
    images: Images,
    targets: Sequence[TeacherTargets],
    schedule: Schedule,
    hardware: Hardware,
    device: torch.device,
    seed: int,
    progress: Progress,
    world: World = SINGLE_PROCESS,
    snapshots: Snapshots | None = None,
    view_options: ViewOptions = PLAIN,
    loss_weights: LossWeights = FEATURES_ONLY,
    phase: Phase = "whole",
) -> Trace:
    """Train `student` in place. It ends with the best weights on the validation share, without one with the last.

    AdamW (Muon for matrices where the schedule has a rate for them), linear one-cycle schedule, gradient clipping.
    The processes of `world` share every batch and end with the same weights and trace. view_options: how the
    images become inputs. loss_weights: of the losses besides the feature loss. snapshots: saves and restores the
    state. phase: of a training in two parts, the first part ends with its last weights, and the second part may
    keep its initial weights where they are the best. A batch that does not fit into memory is computed in parts.
    Raises TrainingError where the loss is not finite, ConfigError where a batch has fewer images than there are
    processes, Interrupted where the user stops the run.
    """
    pixels = Feed(images.images, device)
    order = Order(images.train, schedule.batch_size, seed, filled=view_options.fresh)
    batches = Batches(order, view_options, pixels, targets, seed)
    _check_batch_size(batches.size, world)
    if loss_weights.balanced and world.size > 1:
        raise ConfigError(
            "method.balance=errors compares the errors of whole batches, which several processes share. Run one "
            "process, or pass method.balance=none."
        )
    state = TrainingState(student, schedule, student.matrices())
    trained = graphed(student, hardware, device, progress, whole=lambda: not state.images_at_once)
    step_loss = world.parallel(StepLoss(trained, targets, world, loss_weights))
    snapshot = (snapshots or Snapshots()).next_training()
    saved = snapshot.load()
    validation = (student, pixels, targets, images.validation, hardware, device, world, loss_weights)
    task_weights = [own.weight for own in targets]

    def record(state: TrainingState, keep_best: bool = True) -> None:
        """Record the loss on the validation share, and the part of the features where it has others."""
        parts = loss_weights.logit_weight > 0 and any(own.head is not None for own in targets)
        features = _errors(*validation[:-1]) if parts else None
        state.record_validation(_errors(*validation), task_weights, keep_best, features)

    if saved is None:
        state.start_error = _errors(student, pixels, targets, images.train, hardware, device, world)
        if phase == "second" and len(images.validation):
            record(state)
    else:
        state.restore(*saved)
        if state.step == schedule.steps:
            progress(Event("train", state.step, state.step))  # all steps were done by an earlier process
    every = max(1, schedule.steps // VALIDATIONS)

    def backward(batch: Batch) -> Tensor:
        """Compute the gradients of this process's share of a batch, in parts where needed; its loss."""
        own, counts = world.shard(batch.positions()), batch.counts()
        total = torch.zeros((), device=device)
        for part in torch.split(own, state.images_at_once or len(own)):
            with hardware.autocast(device):
                loss = step_loss(batch, part, counts)
            loss.backward()
            total += loss.detach()
        return total

    with catch_signals() as stop:
        for step in range(state.step, schedule.steps):
            loss = _within_memory(backward, batches.batch(step), state, world, progress, loss_weights.balanced)
            nn.utils.clip_grad_norm_(state.parameters, schedule.clip)
            stopping = torch.tensor(float(stop.signal is not None), device=device)
            mean, stops = world.sum(torch.stack([loss / world.size, stopping])).tolist()  # all stop together
            state.losses.append(finite(mean, step))
            values = {"loss": state.losses[-1], "lr": state.rate}
            state.advance()
            last = step + 1 == schedule.steps
            if len(images.validation) and ((step + 1) % every == 0 or last):
                record(state, phase != "first")
                values["validation"] = state.validation[-1][1]
            progress(Event("train", step + 1, schedule.steps, values, batches.size))
            due = last or stops or snapshot.due(step + 1)
            saved_now = due and snapshot.save(state.tensors(), state.metadata())
            if stops:
                raise stop.error(f"step {step + 1} of {schedule.steps}", saved_now)
    return state.finish()


def _within_memory(
    backward: Callable[[Batch], Tensor],
    batch: Batch,
    state: TrainingState,
    world: World,
    progress: Progress,
    whole: bool,
) -> Tensor:
    """Compute the gradients of a batch; where it does not fit into memory, in parts of half the size.

    The losses are divided by the counts of the whole batch, so the sum is the same up to rounding. whole: it is
    not (balanced losses), so that the batch is not divided.
    """
    while True:
        try:
            return backward(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            share = state.images_at_once or len(world.shard(batch.positions()))
            text = (
                f"out of memory with {share} image{'s' * (share != 1)} at a time. Pass a smaller "
                "method.batch_size, hardware.checkpointing=true, or method.maps=low_rank."
            )
            if world.size > 1:  # the other processes do not know, and wait for gradients
                raise MemoryError(text) from None
            if share == 1 or whole:
                raise TrainingError(text) from None
        state.images_at_once = math.ceil(share / 2)  # outside of the handler, which holds the tensors of the batch
        state.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        progress(Event(f"out of memory: {state.images_at_once} images at a time from now on", 1, 1))


def _check_batch_size(size: int, world: World) -> None:
    if size < world.size:
        raise ConfigError(
            f"{world.size} processes share every batch, but a batch has {size} images. Start fewer processes, or "
            "raise method.batch_size and data.images_per_task."
        )


def _errors(
    student: Student,
    pixels: Feed,
    targets: Sequence[TeacherTargets],
    rows: Tensor,
    hardware: Hardware,
    device: torch.device,
    world: World,
    loss_weights: LossWeights = FEATURES_ONLY,
) -> tuple[float, ...]:
    """Error per source over `rows`, in large batches; each process takes its share of them."""
    sums = torch.zeros(len(targets), dtype=torch.double, device=with_fp64(device))
    with torch.no_grad(), hardware.autocast(device):
        for part in torch.split(world.shard(rows), hardware.eval_batch):
            if len(part):
                batch = Batch.of(pixels, targets, part)
                at = batch.positions()
                features = student(batch.pixels(at))
                errors = [
                    source_error(student, features, batch, at, t, i, loss_weights) for i, t in enumerate(targets)
                ]
                sums += torch.stack(errors).to(sums.device)
    used = [feature_rows(own.reads, rows) for own in targets]
    counts = torch.stack([per_feature(own.mask, own.reads)[at].sum() for own, at in zip(targets, used)])
    means = (world.sum(sums).cpu() / counts).tolist()
    return tuple(means)  # NaN for a source whose mask has none of the rows
