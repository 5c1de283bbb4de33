"""One training loop for every method that trains: same queries, loss, steps and schedule."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fsmerge_cli.common.distributed import ALONE, World
from fsmerge_cli.common.errors import ConfigError, Interrupted, TrainingError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.transfer import Feed
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.batches import Batches, Order, ViewOptions
from fsmerge_cli.training.interrupts import listening
from fsmerge_cli.training.objective import Batch, LossWeights, Step, source_error
from fsmerge_cli.training.snapshots import Keeper
from fsmerge_cli.training.state import Run, Schedule, Trace, finite
from fsmerge_cli.training.teachers import TeacherTargets

PLAIN, NOTHING = ViewOptions(), LossWeights()
"""The images as they are; the features alone."""

Phase = Literal["whole", "first", "second"]

VALIDATIONS = 20
"""How often a run looks at its validation share."""


def train(
    student: Student,
    images: Images,
    targets: Sequence[TeacherTargets],
    schedule: Schedule,
    hardware: Hardware,
    device: torch.device,
    seed: int,
    progress: Progress,
    world: World = ALONE,
    keeper: Keeper | None = None,
    view_options: ViewOptions = PLAIN,
    loss_weights: LossWeights = NOTHING,
    phase: Phase = "whole",
) -> Trace:
    """Train `student` in place; it ends with the best step's weights on the validation share, else the last.

    AdamW (Muon for matrices where the schedule has a rate for them), linear one-cycle schedule, gradient clipping.
    The processes of `world` share every batch and end with the same weights and trace. asking: how the images
    become questions. extras: what counts beside the features. keeper: where the state is kept, and found
    again. phase: of a training in two, the first one ends with its last weights, and what the second one begins
    with is kept where it is the best. A batch that does not fit into memory is computed in pieces.
    Raises TrainingError where the loss is not finite, ConfigError where a batch has fewer images than there are
    processes, Interrupted where the user asked to stop.
    """
    pixels = Feed(images.images, device)
    order = Order(images.train, schedule.batch_size, seed, filled=view_options.fresh)
    questions = Batches(order, view_options, pixels, targets, seed)
    _check_shares(questions, world)
    run = Run(student, schedule, student.matrices())
    step_loss = world.parallel(Step(student, targets, world, loss_weights))
    stage = (keeper or Keeper()).stage()
    saved = stage.load()
    validation = (student, pixels, targets, images.validation, hardware, device, world, loss_weights)
    if saved is None:
        run.start = _errors(student, pixels, targets, images.train, hardware, device, world)
        if phase == "second" and len(images.validation):
            run.validated(_errors(*validation), [own.weight for own in targets])
    else:
        run.restore(*saved)
        if run.step == schedule.steps:
            progress(Event("train", run.step, run.step))  # an earlier process's steps
    every = max(1, schedule.steps // VALIDATIONS)

    def backward(batch: Batch) -> Tensor:
        """Gradients of a batch, in as many parts as memory asks for; the loss of this process's share."""
        own, counts = world.share(batch.positions()), batch.counts()
        total = torch.zeros((), device=device)
        for part in torch.split(own, run.part or len(own)):
            with hardware.autocast(device):
                loss = step_loss(batch, part, counts)
            loss.backward()
            total += loss.detach()
        return total

    with listening() as asked:
        for step in range(run.step, schedule.steps):
            loss = _within_memory(backward, questions.batch(step), run, world, progress)
            nn.utils.clip_grad_norm_(run.parameters, schedule.clip)
            stop = torch.tensor(float(asked.signal is not None), device=device)
            told = world.total(torch.stack([loss / world.size, stop])).tolist()  # processes stop together
            run.losses.append(finite(told[0], step))
            values = {"loss": run.losses[-1], "lr": run.rate}
            run.advance()
            last = step + 1 == schedule.steps
            if len(images.validation) and ((step + 1) % every == 0 or last):
                run.validated(_errors(*validation), [own.weight for own in targets], phase != "first")
                values["validation"] = run.seen[-1][1]
            progress(Event("train", step + 1, schedule.steps, values, questions.size))
            if last or told[1] or stage.due(step + 1):
                stage.save(run.tensors(), run.facts())
            if told[1]:
                raise Interrupted(f"step {step + 1} of {schedule.steps}", asked.signal or signal.SIGINT)
    return run.finish()


def _within_memory(
    backward: Callable[[Batch], Tensor], batch: Batch, run: Run, world: World, progress: Progress
) -> Tensor:
    """The gradients of a batch; where memory does not suffice, in parts of half the size.

    The counts that the losses are divided by are the whole batch's, so the sum is the same up to rounding.
    """
    while True:
        try:
            return backward(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            share = run.part or len(world.share(batch.positions()))
            text = (
                f"out of memory with {share} images at a time. Pass a smaller method.batch_size, "
                "hardware.checkpointing=true, or method.maps=low_rank."
            )
            if world.size > 1:  # the others know nothing of it, and wait in the middle of their gradients
                raise MemoryError(text) from None
            if share == 1:
                raise TrainingError(text) from None
        run.part = math.ceil(share / 2)  # outside of the handler, which holds what did not fit
        run.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        progress(Event(f"out of memory: {run.part} images at a time from here on", 1, 1))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says so, on a GPU or on the CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate" in text


def _check_shares(questions: Batches, world: World) -> None:
    size = questions.size
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
    loss_weights: LossWeights = NOTHING,
) -> tuple[float, ...]:
    """Error per source over `rows`, in large batches; each process takes its share of them."""
    sums = torch.zeros(len(targets), dtype=torch.double, device=device)
    with torch.no_grad(), hardware.autocast(device):
        for part in torch.split(world.share(rows), hardware.eval_batch):
            if len(part):
                batch = Batch.of(pixels, targets, part)
                at = batch.positions()
                features = student(batch.pixels(at))
                errors = [
                    source_error(student, features, batch, at, t, i, loss_weights) for i, t in enumerate(targets)
                ]
                sums += torch.stack(errors)
    counts = torch.stack([own.wanted[rows].sum() for own in targets])
    means = (world.total(sums).cpu() / counts).tolist()
    return tuple(means)  # not a number for a source that no row is compared with
