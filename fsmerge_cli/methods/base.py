"""The base class of methods, and the options and training shared by the methods that train."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.errors import ConfigError, DataError, DivergedError
from fsmerge_cli.common.options import FORBID, BatchSize, Count, NonNegativeFloat, Positive, PositiveFloat, Share
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data.draw import Images, Targets
from fsmerge_cli.data.images.augment import Augment
from fsmerge_cli.data.text.augment import require_known
from fsmerge_cli.methods.budget import BUDGETS, CLOSED_FORM_RATE, STEPS, STEPS_FROM_CLOSED_FORM, Budget
from fsmerge_cli.methods.token_start import token_reader
from fsmerge_cli.models.head_count import HeadCount, merged_heads
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.batches import ViewOptions
from fsmerge_cli.training.loop import Phase, train
from fsmerge_cli.training.objective import LossWeights
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.state import Schedule, Trace
from fsmerge_cli.training.teachers import TeacherTargets, capture
from fsmerge_cli.training.whitening import whitened


@dataclass(frozen=True, config=FORBID)
class Method(ABC):
    """Abstract: a frozen dataclass of options with the one method `fit`.

    name: key in METHODS. width: of the merged model's features in units, or a list of one per layer (null: source
    1's). heads: of attention in the merged model; a number, all (every head of every source, at a smaller size),
    or same (as many as source 1 has). null: `default_heads`.
    """

    uses_images: ClassVar[bool] = False
    one_width: ClassVar[bool] = False
    """Whether all sources must have the merged model's widths and number of heads."""
    uses_base: ClassVar[bool] = False
    """Whether the method needs the pretrained weights that all sources share (`models.base`)."""
    solves: ClassVar[bool] = True
    """Whether `fit` needs a device with fp64: methods without a training."""
    mixed_images: ClassVar[str] = ""
    """What it costs that the images belong to no particular task, for a note; empty: nothing that is known."""

    name: str
    width: Positive | tuple[Positive, ...] | None = None
    heads: HeadCount | None = None

    @property
    def default_heads(self) -> Literal["all", "same"]:
        """What `heads: null` stands for."""
        return "same"

    @property
    def needs_images(self) -> bool:
        """Whether it uses images with these options; `uses_images`: as shipped."""
        return self.uses_images

    def plan(self, sources: Sequence[Source]) -> Plan:
        """The plan for merging `sources` into a model of `width` and `heads`; raises as `compile_plan`."""
        heads = self.heads or self.default_heads
        return compile_plan(sources, self.width, merged_heads(sources, self.width, heads))

    def settled(self, sources: Sequence[Source]) -> tuple[Method, tuple[str, ...]]:
        """The method with the defaults that depend on the sources, as `plan` and `fit` have them; and notes."""
        return self, ()

    def refined(self, problem: Problem) -> Plan:
        """The problem's plan, or one with widths that the images determine."""
        return problem.plan

    def check(self, problem: Problem) -> None:  # noqa: B027  # most problems suit every method
        """Raise UserError where the method does not apply to the problem, before anything is computed."""

    @abstractmethod
    def fit(self, problem: Problem) -> Solution:
        """Solve the problem; deterministic in `problem.seed`."""


@dataclass(frozen=True, config=FORBID)
class Weighted(Method, ABC):
    """Abstract: the option of all methods in which tasks can have different weights.

    task_weights: one positive number per source, in the order of `models.sources` (null: equal weights). Only
    their ratios matter.
    """

    task_weights: tuple[PositiveFloat, ...] | None = None

    def weights_of_tasks(self, k: int) -> tuple[float, ...]:
        """The weights of `k` tasks, scaled to mean 1. Raises ConfigError where there are not `k` of them."""
        given = (1.0,) * k if self.task_weights is None else self.task_weights
        if len(given) != k:
            raise ConfigError(
                f"method.task_weights has {len(given)} values, but there are {k} sources. Give one positive "
                "number per source, in the order of models.sources, or null."
            )
        largest = max(given)  # dividing by it first keeps the sum from overflowing
        mean = math.fsum(w / largest for w in given) / k
        return tuple(w / largest / mean for w in given)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The training images with their fixed augmented copies, and the teachers' targets on them."""

    images: Images
    targets: Sequence[TeacherTargets]


@dataclass(frozen=True, config=FORBID)
class Trained(Weighted, ABC):
    """Abstract: the options shared by all methods that train, which makes them comparable at equal budget.

    steps: number of training steps at budget=default (null: 2000; from the closed form 500). budget: fast takes a
    quarter of the steps, best four times as many. batch_size: images per step; with fixed views at most all of
    them. optimizer: adamw, or muon for matrices between hidden units (adamw for all other parameters). lr: of
    AdamW, peak of the one-cycle schedule (null: by the width of the merged features, see `rate`). matrix_lr: of
    Muon, peak of the one-cycle schedule (null: 0.003 for maps, 0.01 for weights, for any width; after the closed
    form both rates are 0.3 of that). weight_decay: of both optimizers. clip: largest norm of the gradient.
    targets: own is same-task distillation, in which the teacher of an image is the source of its task; all adds
    cross-task distillation, in which every source is a teacher of every image. logit_weight: weight of the KL
    divergence between the heads' logits (temperature 2), relative to the loss of the features. cross_task_weight:
    factor of that divergence on images of other tasks. outlier_exposure: weight of the penalty for confident
    predictions on images of other tasks, the KL divergence from the uniform distribution (arXiv 1812.04606).
    augment: none, shift, crop_flip, paper or strong, applied to the training images. views: fresh (new views at
    every step), or the number of fixed augmented copies of each image. mixup: share of every batch that is mixed
    with other images. low_resolution: share of every batch that is seen at half its resolution.
    standardise: of the sources' features before they are compared; isotropic divides by their mean variance, which
    for squared errors is the isotropic standardisation of PHI-S (arXiv 2410.01680: its rotation changes no
    distance), whitened makes all directions vary alike (ZCA). balance: errors gives every source the same share of
    the gradient, in which its error is relative to itself; none weighs errors as they are. retries: how often the
    training restarts with half the learning rate where the loss is not finite.
    """

    uses_images: ClassVar[bool] = True
    solves: ClassVar[bool] = False
    mixed_images: ClassVar[str] = (
        "learns to tell the tasks apart from images of known tasks, and it is not known which these are of. "
        "That costs joint accuracy (task not given). Folders named after the tasks avoid it"
    )
    LR_UP_TO_WIDTH_96: ClassVar[float] = 1e-3
    MATRIX_LR: ClassVar[float] = 3e-3
    """Default learning rates: of AdamW for features of 96 units or fewer, and of Muon."""

    steps: Positive | None = None
    budget: Budget = "default"
    batch_size: BatchSize = 128
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
    low_resolution: Share = 0.0
    standardise: Literal["isotropic", "whitened"] = "isotropic"
    balance: Literal["none", "errors"] = "none"
    retries: Count = 0

    def all_steps(self, k: int) -> int:
        """Training steps of a whole run with `k` sources."""
        return self.total_steps

    @property
    def solved_start(self) -> bool:
        """Whether the training starts from the closed form."""
        return False

    @property
    def default_heads(self) -> Literal["all", "same"]:
        """All heads of all sources where the start has them."""
        return "all" if self.solved_start else "same"

    @property
    def rate_factor(self) -> float:
        """Factor of the default learning rates."""
        return CLOSED_FORM_RATE if self.solved_start else 1.0

    def rate(self, width: int) -> float:
        """Peak of AdamW's one-cycle schedule: `lr`, or a rate that is inversely proportional to the feature width.

        Adam changes each parameter by about the learning rate, and a unit sums as many parameters as its layer is
        wide, so a good rate scales as 1 / width (Tensor Programs V, arXiv 2203.03466).
        """
        return self.lr or self.rate_factor * self.LR_UP_TO_WIDTH_96 * 96 / max(96, width)

    @property
    def matrix_rate(self) -> float:
        """Peak of Muon's one-cycle schedule; the length of its steps does not depend on the width."""
        return self.matrix_lr or self.rate_factor * self.MATRIX_LR

    @property
    def view_options(self) -> ViewOptions:
        """How training images become views."""
        return ViewOptions(self.augment, self.views, self.mixup, self.low_resolution)

    @property
    def loss_weights(self) -> LossWeights:
        """The losses beside that of the features."""
        balanced = self.balance == "errors"
        return LossWeights(self.logit_weight, self.outlier_exposure, self.cross_task_weight, balanced)

    def images_per_step(self, available: int) -> int:
        """Images of one step, given `available` training images without their fixed copies."""
        if self.view_options.fresh:
            return self.batch_size  # filled up with further views
        copies = self.views if self.augment != "none" and isinstance(self.views, int) else 0
        return min(self.batch_size, available * (1 + copies))

    @property
    def total_steps(self) -> int:
        """Steps of one training, by `budget`."""
        steps = self.steps or (STEPS_FROM_CLOSED_FORM if self.solved_start else STEPS)
        return max(1, round(steps * BUDGETS[self.budget]))

    def check(self, problem: Problem) -> None:
        """Raise DataError where there are no images, ConfigError for views that these inputs do not have."""
        if problem.plan.family.kind == "text":
            require_known(self.augment, "method.augment")
            if self.low_resolution:
                raise ConfigError("method.low_resolution is for images, and the inputs are texts. Pass 0.")
        elif self.low_resolution and min(problem.plan.arch.input_size[1:]) < 2:
            raise ConfigError(
                "method.low_resolution halves the sides of images, and these have one pixel. Pass 0."
            )
        if len(problem.images) == 0:
            more = "Pass data=... with data.images_per_task of 1 or more, data.auxiliary={name: generated}, or"
            raise DataError(f"this method needs unlabelled images. {more} method=average, which needs none.")

    def prepare(self, problem: Problem) -> Prepared:
        """Run the teachers on the images and their fixed copies. Raises DataError where there are no images."""
        Trained.check(self, problem)
        images = self.view_options.copies(problem.images, problem.seed)
        where = problem.hardware, problem.device, problem.progress
        targets = capture(problem.sources, images, self.targets, *where)
        if self.standardise == "whitened":
            batch = problem.hardware.eval_batch
            targets = tuple(whitened(own, images.train, batch) for own in targets)
        weights = self.weights_of_tasks(len(problem.sources))
        return Prepared(images, tuple(dataclasses.replace(own, weight=w) for own, w in zip(targets, weights)))

    def train(
        self,
        problem: Problem,
        student: Student,
        prepared: Prepared | None = None,
        steps: int | None = None,
        rates_of: Trained | None = None,
        seed: int | None = None,
        phase: Phase = "whole",
    ) -> Trace:
        """Train `student` in place.

        prepared, steps, seed: replace those that follow from the options. rates_of: the method whose learning
        rates are taken (None: this one). phase: see `training.loop.train`.
        """
        prepared, steps = prepared or self.prepare(problem), steps or self.total_steps
        student = token_reader(problem, student, prepared.images, prepared.targets)
        start = {n: t.detach().clone() for n, t in student.state_dict().items()} if self.retries else {}
        attempt = 0
        while True:
            rate = (rates_of or self).rate(problem.plan.width) / 2**attempt
            matrix_rate = (rates_of or self).matrix_rate / 2**attempt if self.optimizer == "muon" else None
            try:
                trace = train(
                    student,
                    prepared.images,
                    prepared.targets,
                    Schedule(steps, self.batch_size, rate, self.weight_decay, self.clip, matrix_rate),
                    problem.hardware,
                    problem.device,
                    problem.seed if seed is None else seed,
                    problem.progress,
                    problem.world,
                    problem.snapshots,
                    self.view_options,
                    self.loss_weights,
                    phase,
                )
                return dataclasses.replace(trace, restarts=attempt)
            except DivergedError:
                if attempt == self.retries:
                    raise
            attempt += 1
            student.load_state_dict(start)
            problem.progress(Event(f"the loss is not finite: restarting with lr={rate / 2:g}", 1, 1))
