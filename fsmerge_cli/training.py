"""One training loop for every method that trains: same queries, loss, steps and schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fsmerge_cli.data.queries import Images
from fsmerge_cli.errors import TrainingError
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


def objective(student: Student, images: Tensor, targets: Sequence[Captured], rows: Tensor) -> Tensor:
    """Mean over sources of the relative squared error of their readout.

    sum_i mean_{x wanted by i} |U_out,i z'(x) - f_i(x)|^2 / (d_i var_i) / k; images are the rows' pixels.
    """
    features = student(images)
    errors = [
        e for i, own in enumerate(targets) if (e := source_error(student, features, own, rows, i)) is not None
    ]
    return torch.stack(errors).sum() / len(targets)


def source_error(student: Student, features: Tensor, own: Captured, rows: Tensor, source: int) -> Tensor | None:
    """Relative squared error of one source's readout; None where no row of the batch is wanted."""
    wanted = own.wanted[rows]
    if not bool(wanted.any()):
        return None
    estimate = student.readout(features[wanted], source)
    return (estimate - own.at(rows[wanted])).square().mean() / own.variance


def train(
    student: Student,
    images: Images,
    targets: Sequence[Captured],
    schedule: Schedule,
    hardware: Hardware,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> Trace:
    """Train `student` in place; it ends with the best step's weights on the validation share, else the last.

    AdamW, linear one-cycle schedule, gradient clipping. Raises TrainingError where the loss is not finite.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.lr, total_steps=schedule.steps, anneal_strategy="linear", cycle_momentum=False
    )
    order = Order(images.train, schedule.batch_size, seed)
    pixels = Feed(images.images, device)
    start = _errors(student, pixels, targets, images.train, hardware, device)
    losses: list[float] = []
    seen: list[tuple[int, float]] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    every = max(1, schedule.steps // VALIDATIONS)
    for step in range(schedule.steps):
        rows = order.batch(step).to(device)
        optimizer.zero_grad(set_to_none=True)
        with hardware.autocast(device):
            loss = objective(student, pixels[rows], targets, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        cycle.step()
        losses.append(_finite(loss.item(), step))
        progress(Event("train", step + 1, schedule.steps, {"loss": losses[-1]}))
        if len(images.validation) and ((step + 1) % every == 0 or step + 1 == schedule.steps):
            errors = _errors(student, pixels, targets, images.validation, hardware, device)
            error = _finite(_mean(errors), step)
            seen.append((step + 1, error))
            if best is None or error < best[0]:
                best = error, step + 1, {n: t.detach().clone() for n, t in student.state_dict().items()}
    if best is not None:
        student.load_state_dict(best[2])
    trainable = sum(p.numel() for p in parameters)
    return Trace(tuple(losses), tuple(seen), best[1] if best else schedule.steps, start, trainable)


def _errors(
    student: Student,
    pixels: Feed,
    targets: Sequence[Captured],
    rows: Tensor,
    hardware: Hardware,
    device: torch.device,
) -> tuple[float, ...]:
    """Relative error per source over `rows`, in large batches."""
    sums = [0.0] * len(targets)
    counts = [0] * len(targets)
    rows = rows.to(device)
    with torch.no_grad(), hardware.autocast(device):
        for part in torch.split(rows, hardware.eval_batch):
            features = student(pixels[part])
            for i, own in enumerate(targets):
                error = source_error(student, features, own, part, i)
                if error is not None:
                    wanted = int(own.wanted[part].sum())
                    sums[i] += error.item() * wanted
                    counts[i] += wanted
    return tuple(total / count if count else math.nan for total, count in zip(sums, counts))


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
