"""What a method is given, what it gives back, and the options of those that train."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.errors import ConfigError, DataError, DivergedError
from fsmerge_cli.common.options import FORBID, Count, NonNegativeFloat, Positive, PositiveFloat, Share
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data.draw import Images, Targets
from fsmerge_cli.data.images.augment import Augment
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.batches import ViewOptions
from fsmerge_cli.training.loop import Phase, train
from fsmerge_cli.training.objective import LossWeights
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.state import Schedule, Trace
from fsmerge_cli.training.teachers import TeacherTargets, capture

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


@plain_dataclass(frozen=True)
class Prepared:
    """What a training looks at: the images with their fixed copies, and the sources' answers to them."""

    images: Images
    targets: Sequence[TeacherTargets]


@dataclass(frozen=True, config=FORBID)
class Trained(Weighted, ABC):
    """Abstract: the options of every method that trains, so that they are comparable to the step.

    steps: at budget=default; fast takes a quarter of them, best four times as many. batch_size (images per step,
    all of them where there are fewer); optimizer: adamw, or muon for matrices between hidden units (adamw for all
    else); lr (of AdamW, peak of the one-cycle; null: by the width of the merged features, see `rate`); matrix_lr
    (of Muon, peak of the one-cycle; null: 0.003 for maps, 0.01 for weights, of any width); weight_decay (of both);
    clip (gradient norm); targets: own compares an image with the source of its task, all with every source.
    logits: what the distance of the heads' answers (KL divergence, temperature 2) counts beside that of the
    features; foreign: what of it counts of images of other tasks. apart: cost of a head's being sure of those.
    augment: none, shift, paper, strong, on the images that are trained on; views: fresh (other ones at every
    step), or how many fixed copies of every image. mix: share of every batch that is mixed with other images.
    retries: how often to begin again with half the learning rate where the loss is not finite.
    """

    uses_images: ClassVar[bool] = True
    WIDTH_96: ClassVar[float] = 1e-3
    """The rate that fits features of 96 units or fewer."""
    MATRICES: ClassVar[float] = 3e-3
    """The rate of Muon."""

    steps: Positive = 2000
    budget: Budget = "default"
    batch_size: Positive = 128
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: PositiveFloat | None = None
    matrix_lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 1e-3
    clip: PositiveFloat = 1.0
    targets: Targets = "all"
    logit_weight: NonNegativeFloat = 1.0
    cross_task_weight: NonNegativeFloat = 0.4
    outlier_exposure: NonNegativeFloat = 0.2
    augment: Augment = "strong"
    views: Positive | Literal["fresh"] = "fresh"
    mixup: Share = 0.8
    retries: Count = 0

    def all_steps(self, k: int) -> int:
        """Steps of a whole run with `k` sources."""
        return self.total_steps

    def rate(self, width: int) -> float:
        """Peak of the one-cycle: `lr`, or one that falls with the width of the features.

        Adam moves every number by about the rate, and a unit adds up as many of them as the layer is wide, so the
        rate that fits one width fits another one in proportion (Tensor Programs V, arXiv 2203.03466).
        """
        return self.lr or self.WIDTH_96 * 96 / max(96, width)

    @property
    def matrix_rate(self) -> float:
        """Peak of the one-cycle of Muon, whose steps have a length that does not depend on the width."""
        return self.matrix_lr or self.MATRICES

    @property
    def view_options(self) -> ViewOptions:
        """How the images become questions."""
        return ViewOptions(self.augment, self.views, self.mixup)

    def images_per_step(self, there: int) -> int:
        """Images of one step where so many are trained on, their fixed copies not counted."""
        if self.view_options.fresh:
            return self.batch_size  # filled up with other views
        copies = self.views if self.augment != "none" and isinstance(self.views, int) else 0
        return min(self.batch_size, there * (1 + copies))

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, by `budget`."""
        return max(1, round(self.steps * BUDGETS[self.budget]))

    def prepare(self, problem: Problem) -> Prepared:
        """Capture the targets of the images and of their fixed copies. Raises DataError where there are none."""
        if len(problem.images) == 0:
            raise DataError(
                "this method needs unlabelled images. Pass data=... with data.images_per_task of 1 or more, "
                "data.auxiliary={name: generated} for images of no task, or method=average, which needs none."
            )
        images = self.view_options.copies(problem.images, problem.seed)
        targets = capture(
            problem.sources,
            images,
            self.targets,
            problem.hardware,
            problem.device,
            problem.progress,
        )
        weights = self.weights_of_tasks(len(problem.sources))
        return Prepared(images, tuple(replace(own, weight=w) for own, w in zip(targets, weights)))

    def train(
        self,
        problem: Problem,
        student: Student,
        prepared: Prepared | None = None,
        steps: int | None = None,
        like: Trained | None = None,
        seed: int | None = None,
        phase: Phase = "whole",
    ) -> Trace:
        """Train `student` in place; prepared, steps, seed: where they are not as the options say.

        like: whose rates are taken, where they are not this method's own.
        phase: see `training.train`.
        """
        found = prepared or self.prepare(problem)
        start = {n: t.detach().clone() for n, t in student.state_dict().items()} if self.retries else {}
        attempt = 0
        while True:
            rate = (like or self).rate(problem.plan.arch.features) / 2**attempt
            matrix_rate = (like or self).matrix_rate / 2**attempt if self.optimizer == "muon" else None
            try:
                trace = train(
                    student,
                    found.images,
                    found.targets,
                    Schedule(
                        steps or self.total_steps, self.batch_size, rate, self.weight_decay, self.clip, matrix_rate
                    ),
                    problem.hardware,
                    problem.device,
                    problem.seed if seed is None else seed,
                    problem.progress,
                    problem.world,
                    problem.keeper,
                    self.view_options,
                    LossWeights(self.logit_weight, self.outlier_exposure, self.cross_task_weight),
                    phase,
                )
                return replace(trace, halved=attempt)
            except DivergedError:
                if attempt == self.retries:
                    raise
            attempt += 1
            student.load_state_dict(start)
            problem.progress(Event(f"the loss is not finite: again with lr={rate / 2:g}", 1, 1))
