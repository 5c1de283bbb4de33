"""What a method is given, what it gives back, and the options of those that train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic.dataclasses import dataclass

from fsmerge_cli.errors import DataError
from fsmerge_cli.features import Targets, capture
from fsmerge_cli.options import FORBID, NonNegativeFloat, Positive, PositiveFloat
from fsmerge_cli.problem import Problem, Solution
from fsmerge_cli.training import Schedule, Student, Trace, train


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
    lr: PositiveFloat = 1e-3
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
            problem.hardware,
            problem.device,
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
            problem.world,
        )
