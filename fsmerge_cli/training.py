"""One training loop for every method that trains: same queries, loss, steps and schedule."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fsmerge_cli.data.queries import Images
from fsmerge_cli.distributed import ALONE, World
from fsmerge_cli.errors import ConfigError, Interrupted, TrainingError
from fsmerge_cli.features import Captured
from fsmerge_cli.feeding import Feed
from fsmerge_cli.hardware import Hardware
from fsmerge_cli.objective import Step, Student, source_error, wanted
from fsmerge_cli.progress import Event, Progress
from fsmerge_cli.resuming import Keeper, listening
from fsmerge_cli.running import Run, Schedule, Trace, finite
from fsmerge_cli.seeding import generator

VALIDATIONS = 20
"""How often a run looks at its validation share."""


@dataclass
class Order:
    """Which images make up step s: consecutive pieces of one seeded permutation per pass over the data.

    Depends on (seed, step) alone. Fewer images than the batch: every step takes all of them.
    """

    rows: Tensor
    batch_size: int
    seed: int
    _passes: dict[int, Tensor] = field(default_factory=dict)

    def batch(self, step: int) -> Tensor:
        """Rows of the images of one step."""
        n = len(self.rows)
        if n <= self.batch_size:
            return self.rows
        start = step * self.batch_size
        wanted = range(start, start + self.batch_size)
        passes = sorted({position // n for position in wanted})
        self._passes = {p: self._passes.get(p, self._permutation(p)) for p in passes}
        both = torch.cat([self._passes[p] for p in passes])
        return self.rows[both[start - passes[0] * n :][: self.batch_size]]

    def _permutation(self, number: int) -> Tensor:
        return torch.randperm(len(self.rows), generator=generator(self.seed, "order", number))


def train(
    student: Student,
    images: Images,
    targets: Sequence[Captured],
    schedule: Schedule,
    hardware: Hardware,
    device: torch.device,
    seed: int,
    progress: Progress,
    world: World = ALONE,
    keeper: Keeper | None = None,
) -> Trace:
    """Train `student` in place; it ends with the best step's weights on the validation share, else the last.

    AdamW, linear one-cycle schedule, gradient clipping. The processes of `world` share every batch and end with
    the same weights and trace. keeper: where the state is kept, and found again. A batch that does not fit into
    memory is computed in parts. Raises TrainingError where the loss is not finite, ConfigError where a batch has
    fewer images than there are processes, Interrupted where the user asked to stop.
    """
    _check_shares(schedule, images, world)
    order = Order(images.train, schedule.batch_size, seed)
    run = Run(student, schedule)
    pixels = Feed(images.images, device)
    step_loss = world.parallel(Step(student, targets, world))
    stage = (keeper or Keeper()).stage()
    saved = stage.load()
    if saved is None:
        run.start = _errors(student, pixels, targets, images.train, hardware, device, world)
    else:
        run.restore(*saved)
    every = max(1, schedule.steps // VALIDATIONS)

    def backward(rows: Tensor) -> Tensor:
        """Gradients of a batch, in as many parts as memory asks for; the loss of this process's share."""
        own, counts = world.share(rows), wanted(targets, rows)
        total = torch.zeros((), device=device)
        for part in torch.split(own, run.part or len(own)):
            with hardware.autocast(device):
                loss = step_loss(pixels, part, counts)
            loss.backward()
            total += loss.detach()
        return total

    with listening() as asked:
        for step in range(run.step, schedule.steps):
            rows = order.batch(step).to(device)
            loss = _within_memory(backward, rows, run, world, progress)
            nn.utils.clip_grad_norm_(run.parameters, schedule.clip)
            stop = torch.tensor(float(asked.signal is not None), device=device)
            told = world.total(torch.stack([loss / world.size, stop])).tolist()  # processes stop together
            run.losses.append(finite(told[0], step))
            values = {"loss": run.losses[-1], "lr": run.optimizer.param_groups[0]["lr"]}
            run.advance()
            last = step + 1 == schedule.steps
            if len(images.validation) and ((step + 1) % every == 0 or last):
                errors = _errors(student, pixels, targets, images.validation, hardware, device, world)
                run.validated(errors, [own.weight for own in targets])
                values["validation"] = run.seen[-1][1]
            progress(Event("train", step + 1, schedule.steps, values, len(rows)))
            if last or told[1] or stage.due(step + 1):
                stage.save(run.tensors(), run.facts())
            if told[1]:
                raise Interrupted(f"step {step + 1} of {schedule.steps}", asked.signal or signal.SIGINT)
    return run.finish()


def _within_memory(
    backward: Callable[[Tensor], Tensor], rows: Tensor, run: Run, world: World, progress: Progress
) -> Tensor:
    """The gradients of a batch; where memory does not suffice, in parts of half the size.

    The counts that the losses are divided by are the whole batch's, so the sum is the same up to rounding.
    """
    while True:
        try:
            return backward(rows)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            share = run.part or len(world.share(rows))
            text = (
                f"out of memory with {share} images at a time. Pass a smaller method.batch_size, "
                "hardware.checkpointing=true, or method.maps=low_rank."
            )
            if world.size > 1:  # the others know nothing of it, and wait in the middle of their gradients
                raise MemoryError(text) from None
            if share == 1:
                raise TrainingError(text) from None
        run.part = math.ceil(share / 2)  # outside of the handler, which holds what did not fit
        run.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        progress(Event(f"out of memory: {run.part} images at a time from here on", 1, 1))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says so, on a GPU or on the CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate" in text


def _check_shares(schedule: Schedule, images: Images, world: World) -> None:
    size = min(schedule.batch_size, len(images.train))
    if size < world.size:
        raise ConfigError(
            f"{world.size} processes share every batch, but a batch has {size} images. Start fewer processes, or "
            "raise method.batch_size and data.images_per_task."
        )


def _errors(
    student: Student,
    pixels: Feed,
    targets: Sequence[Captured],
    rows: Tensor,
    hardware: Hardware,
    device: torch.device,
    world: World,
) -> tuple[float, ...]:
    """Relative error per source over `rows`, in large batches; each process takes its share of them."""
    rows = rows.to(device)
    sums = torch.zeros(len(targets), dtype=torch.double, device=device)
    with torch.no_grad(), hardware.autocast(device):
        for part in torch.split(world.share(rows), hardware.eval_batch):
            if len(part):
                features = student(pixels[part])
                sums += torch.stack([source_error(student, features, t, part, i) for i, t in enumerate(targets)])
    counts = torch.stack([own.wanted[rows].sum() for own in targets])
    means = (world.total(sums) / counts).tolist()
    return tuple(means)  # not a number for a source that no row is compared with
