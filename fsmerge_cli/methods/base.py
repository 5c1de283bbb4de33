"""What a method is given, what it gives back, and the options of those that train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.data.queries import Images
from fsmerge_cli.errors import DataError
from fsmerge_cli.features import Targets, capture
from fsmerge_cli.hardware import Hardware
from fsmerge_cli.maps import MergeMaps
from fsmerge_cli.options import FORBID, NonNegativeFloat, Positive, PositiveFloat
from fsmerge_cli.plan import Plan
from fsmerge_cli.progress import Progress, silent
from fsmerge_cli.sources import Source
from fsmerge_cli.training import Schedule, Student, Trace, train


@plain_dataclass(frozen=True)
class Problem:
    """The sources, their plan and the unlabelled images; the same for every method."""

    plan: Plan
    sources: Sequence[Source]
    images: Images
    hardware: Hardware = field(default_factory=Hardware)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    progress: Progress = silent

    def own_images(self, source: int) -> Tensor:
        """The unlabelled images of one source's task."""
        return self.images.images[self.images.task == source]

    def weights(self) -> list[dict[str, Tensor]]:
        """One fp32 state dict per source, on the device."""
        return [{n: _to(t, self.device) for n, t in s.weights.items()} for s in self.sources]


@plain_dataclass(frozen=True)
class Solution:
    """A merged model: weights of one backbone, one readout U_out [d_i, d'] per source, and how it was found.

    maps: the maps that fold to these weights, for methods that have them. facts: numbers worth knowing
    (condition numbers), by name.
    """

    weights: Mapping[str, Tensor]
    readouts: tuple[Tensor, ...]
    trace: Trace = field(default_factory=Trace)
    maps: MergeMaps | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, config=FORBID)
class Method(ABC):
    """Abstract: a frozen dataclass of options with one verb.

    name: key in METHODS. width: of the merged model's features, or one per layer (null: source 1's own). heads:
    attention heads of the merged model (null: source 1's number).
    """

    uses_images: ClassVar[bool] = False

    name: str
    width: Positive | tuple[Positive, ...] | None = None
    heads: Positive | None = None

    @abstractmethod
    def fit(self, problem: Problem) -> Solution:
        """Solve the problem; deterministic in `problem.seed`."""


@dataclass(frozen=True, config=FORBID)
class Trained(Method, ABC):
    """Abstract: the options of every method that trains, so that they are comparable to the step.

    steps; batch_size (images per step, all of them where there are fewer); lr (peak of the one-cycle);
    weight_decay (AdamW); clip (gradient norm); targets: own compares an image with the source of its task,
    all with every source.
    """

    uses_images: ClassVar[bool] = True

    steps: Positive = 1000
    batch_size: Positive = 128
    lr: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-3
    clip: PositiveFloat = 1.0
    targets: Targets = "own"

    def train(self, problem: Problem, student: Student) -> Trace:
        """Capture the targets and train `student` in place."""
        if len(problem.images) == 0:
            raise DataError(
                "this method needs unlabelled images of the tasks. Pass data=... with data.images_per_task of 1 "
                "or more, or method=average, which needs none."
            )
        targets = capture(
            problem.sources,
            problem.images,
            self.targets,
            problem.device,
            problem.hardware.eval_batch,
            problem.progress,
        )
        schedule = Schedule(self.steps, self.batch_size, self.lr, self.weight_decay, self.clip)
        return train(
            student,
            problem.images,
            targets,
            schedule,
            problem.hardware,
            problem.device,
            problem.seed,
            problem.progress,
        )


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)
