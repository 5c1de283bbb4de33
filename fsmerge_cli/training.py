"""One training loop for every method that trains: same queries, loss, steps and schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fsmerge_cli.data.queries import Images
from fsmerge_cli.distributed import ALONE, World
from fsmerge_cli.errors import ConfigError, TrainingError
from fsmerge_cli.features import Captured
from fsmerge_cli.feeding import Feed
from fsmerge_cli.hardware import Hardware
from fsmerge_cli.progress import Event, Progress
from fsmerge_cli.seeding import generator

VALIDATIONS = 20
"""How often a run looks at its validation share."""


class Student(nn.Module, ABC):
    """What is trained: `forward` gives merged features [n, d'] of images [n, C, H, W]."""

    @abstractmethod
    def readout(self, features: Tensor, source: int) -> Tensor:
        """Estimate of one source's features, [n, d'] -> [n, d_i]."""


@dataclass(frozen=True)
class Schedule:
    """steps; batch_size (images); lr at the peak of a linear one-cycle; weight_decay; clip (gradient norm)."""

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    clip: float


@dataclass(frozen=True)
class Trace:
    """What happened in a training.

    loss: per step. validation: (step, loss) on the validation share. chosen_step: whose weights were kept.
    start_error: relative squared error of the features before the first step, per source. trainable: how many
    numbers were trained.
    """

    loss: tuple[float, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    chosen_step: int = 0
    start_error: tuple[float, ...] = ()
    trainable: int = 0


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


def objective(
    student: Student, images: Tensor, targets: Sequence[Captured], rows: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Mean over sources of the relative squared error of their readout.

    sum_i mean_{x wanted by i} |U_out,i z'(x) - f_i(x)|^2 / (d_i var_i) / k; images are the rows' pixels.
    counts: images wanted by each source [k], where `rows` is one process's share of the batch (None: all of
    it); the objective of the batch is then the sum over the processes.
    """
    features = student(images)
    counts = wanted(targets, rows) if counts is None else counts
    errors = [source_error(student, features, own, rows, i) for i, own in enumerate(targets)]
    return (torch.stack(errors) / counts).sum() / len(targets)


def wanted(targets: Sequence[Captured], rows: Tensor) -> Tensor:
    """How many of the rows each source is compared on, [k]; 1 for none, so that one may divide by it."""
    return torch.stack([own.wanted[rows].sum() for own in targets]).clamp(min=1)


def source_error(student: Student, features: Tensor, own: Captured, rows: Tensor, source: int) -> Tensor:
    """Relative squared error of one source's readout, summed over the rows that are wanted.

    Of none it is a zero with a gradient: every process has to give every parameter one.
    """
    use = own.wanted[rows]
    if not bool(use.any()):
        return student.readout(features[:1], source)[:0].float().sum()
    difference = student.readout(features[use], source) - own.at(rows[use])
    return difference.square().sum() / (difference.shape[1] * own.variance)


class Step(nn.Module):
    """The loss of a student as a module: whatever wraps it sees every use of a parameter in one forward."""

    def __init__(self, student: Student, targets: Sequence[Captured], world: World) -> None:
        super().__init__()
        self.student = student
        self.targets = targets
        self.world = world

    def forward(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """What this process adds to the objective of the batch `rows`; pixels are those of all images."""
        own = self.world.share(rows)
        loss = objective(self.student, pixels[own], self.targets, own, wanted(self.targets, rows))
        # DDP takes the mean of the gradients over the processes; the objective is the sum.
        return loss * self.world.size


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
) -> Trace:
    """Train `student` in place; it ends with the best step's weights on the validation share, else the last.

    AdamW, linear one-cycle schedule, gradient clipping. The processes of `world` share every batch and end with
    the same weights and trace. Raises TrainingError where the loss is not finite, ConfigError where a batch has
    fewer images than there are processes.
    """
    _check_shares(schedule, images, world)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.lr, total_steps=schedule.steps, anneal_strategy="linear", cycle_momentum=False
    )
    order = Order(images.train, schedule.batch_size, seed)
    pixels = Feed(images.images, device)
    step_loss = world.parallel(Step(student, targets, world))
    start = _errors(student, pixels, targets, images.train, hardware, device, world)
    losses: list[float] = []
    seen: list[tuple[int, float]] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    every = max(1, schedule.steps // VALIDATIONS)
    for step in range(schedule.steps):
        rows = order.batch(step).to(device)
        optimizer.zero_grad(set_to_none=True)
        with hardware.autocast(device):
            loss = step_loss(pixels, rows)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        cycle.step()
        losses.append(_finite((world.total(loss.detach()) / world.size).item(), step))
        progress(Event("train", step + 1, schedule.steps, {"loss": losses[-1]}))
        if len(images.validation) and ((step + 1) % every == 0 or step + 1 == schedule.steps):
            errors = _errors(student, pixels, targets, images.validation, hardware, device, world)
            error = _finite(_mean(errors), step)
            seen.append((step + 1, error))
            if best is None or error < best[0]:
                best = error, step + 1, {n: t.detach().clone() for n, t in student.state_dict().items()}
    if best is not None:
        student.load_state_dict(best[2])
    trainable = sum(p.numel() for p in parameters)
    return Trace(tuple(losses), tuple(seen), best[1] if best else schedule.steps, start, trainable)


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


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if not math.isnan(v)]
    return sum(finite) / len(finite) if finite else math.nan


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} at step {step + 1}. Try a third of the learning rate (method.lr=...), "
            "or maps of lower rank."
        )
    return loss
