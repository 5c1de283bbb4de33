"""What a method is given, what it gives back, and the options of those that train."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.data.augment import Augment
from fsmerge_cli.data.queries import Targets
from fsmerge_cli.errors import ConfigError, DataError, DivergedError
from fsmerge_cli.features import capture
from fsmerge_cli.objective import Extras, Student
from fsmerge_cli.options import FORBID, Count, NonNegativeFloat, Positive, PositiveFloat, Share
from fsmerge_cli.problem import Problem, Solution
from fsmerge_cli.progress import Event
from fsmerge_cli.questions import Asking
from fsmerge_cli.running import Schedule, Trace
from fsmerge_cli.training import train

Budget = Literal["fast", "default", "best"]
BUDGETS: dict[Budget, float] = {"fast": 0.25, "default": 1.0, "best": 4.0}
"""What multiplies `method.steps`."""


@dataclass(frozen=True, config=FORBID)
class Method(ABC):
    """Abstract: a frozen dataclass of options with one verb.

    name: key in METHODS. width: of the merged model's features, or one per layer (null: source 1's own). heads:
    attention heads of the merged model (null: source 1's number).
    """

    uses_images: ClassVar[bool] = False
    one_width: ClassVar[bool] = False
    """Whether all sources have to have the merged model's widths and number of heads."""

    name: str
    width: Positive | tuple[Positive, ...] | None = None
    heads: Positive | None = None

    @abstractmethod
    def fit(self, problem: Problem) -> Solution:
        """Solve the problem; deterministic in `problem.seed`."""


@dataclass(frozen=True, config=FORBID)
class Weighted(Method, ABC):
    """Abstract: the option of every method in which one task can count more than another.

    task_weights: one positive number per source, in the order of `models.sources` (null: all tasks count the
    same). Only their ratios matter.
    """

    task_weights: tuple[PositiveFloat, ...] | None = None

    def weights_of_tasks(self, k: int) -> tuple[float, ...]:
        """The weights of `k` tasks, of mean 1. Raises ConfigError where their number is another."""
        given = (1.0,) * k if self.task_weights is None else self.task_weights
        if len(given) != k:
            raise ConfigError(
                f"method.task_weights has {len(given)} numbers, but there are {k} sources. Give one positive "
                "number per source, in the order of models.sources, or null."
            )
        largest = max(given)  # divided by first, so that no sum can overflow
        mean = math.fsum(w / largest for w in given) / k
        return tuple(w / largest / mean for w in given)


@dataclass(frozen=True, config=FORBID)
class Trained(Weighted, ABC):
    """Abstract: the options of every method that trains, so that they are comparable to the step.

    steps: at budget=default; fast takes a quarter of them, best four times as many. batch_size (images per step,
    all of them where there are fewer); lr (peak of the one-cycle); weight_decay (AdamW); clip (gradient norm);
    targets: own compares an image with the source of its task, all with every source. logits: what the distance
    of the heads' answers (KL divergence, temperature 2) counts beside that of the features. apart: cost of a
    head's being sure of images of other tasks. augment: none, shift, paper, strong, on the images that are
    trained on; views: fresh (other ones at every step), or how many fixed copies of every image. mix: share of
    every batch that is mixed with other images. retries: how often to begin again with half the learning rate
    where the loss is not finite.
    """

    uses_images: ClassVar[bool] = True

    steps: Positive = 1000
    budget: Budget = "default"
    batch_size: Positive = 128
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-3
    clip: PositiveFloat = 1.0
    targets: Targets = "own"
    logits: NonNegativeFloat = 0.0
    apart: NonNegativeFloat = 0.0
    augment: Augment = "none"
    views: Positive | Literal["fresh"] = "fresh"
    mix: Share = 0.0
    retries: Count = 0

    def all_steps(self, k: int) -> int:
        """Steps of a whole run with `k` sources."""
        return self.total_steps

    @property
    def asking(self) -> Asking:
        """How the images become questions."""
        return Asking(self.augment, self.views, self.mix)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, by `budget`."""
        return max(1, round(self.steps * BUDGETS[self.budget]))

    def train(
        self, problem: Problem, student: Student, steps: int | None = None, lr: float | None = None
    ) -> Trace:
        """Capture the targets and train `student` in place; steps, lr: others than the options say."""
        if len(problem.images) == 0:
            raise DataError(
                "this method needs unlabelled images of the tasks. Pass data=... with data.images_per_task of 1 "
                "or more, or method=average, which needs none."
            )
        asking = self.asking
        images = asking.copies(problem.images, problem.seed)
        targets = capture(
            problem.sources,
            images,
            self.targets,
            problem.hardware,
            problem.device,
            problem.progress,
        )
        weights = self.weights_of_tasks(len(problem.sources))
        targets = tuple(replace(own, weight=w) for own, w in zip(targets, weights))
        start = {n: t.detach().clone() for n, t in student.state_dict().items()} if self.retries else {}
        attempt = 0
        while True:
            rate = (lr or self.lr) / 2**attempt
            try:
                return train(
                    student,
                    images,
                    targets,
                    Schedule(steps or self.total_steps, self.batch_size, rate, self.weight_decay, self.clip),
                    problem.hardware,
                    problem.device,
                    problem.seed,
                    problem.progress,
                    problem.world,
                    problem.keeper,
                    asking,
                    Extras(self.logits, self.apart),
                )
            except DivergedError:
                if attempt == self.retries:
                    raise
            attempt += 1
            student.load_state_dict(start)
            problem.progress(Event(f"the loss is not finite: again with lr={rate / 2:g}", 1, 1))
