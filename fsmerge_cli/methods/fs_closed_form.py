"""FS-Merge in closed form: the merged network by least squares; a short training may follow."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from fsmerge_cli.alignment.closed_form.options import ROWS_PER_UNIT, ClosedFormOptions
from fsmerge_cli.common.options import FORBID, Count, Flag, NonNegativeFloat, PositiveFloat
from fsmerge_cli.data.images.augment import Augment
from fsmerge_cli.methods.closed_form_solution import check_closed_form, solve
from fsmerge_cli.methods.kd import Distillation, PlainStudent
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.models.head_count import HeadCount
from fsmerge_cli.training.problem import Problem, Solution, Stage


@dataclass(frozen=True, config=FORBID)
class FSClosedForm(Resets):
    """All sources side by side, pruned to the merged width by least squares, from the first layer to the last.

    width: of the merged model, from one source's to the sum of all. heads: all (every head of every source, at a
    smaller size), a number, or same (as many as source 1 has); heads beyond that number are left out whole. views:
    augmented copies of every image as further rows (null: so many that there are IMAGES_PER_TASK images per task).
    augment: none, shift, crop_flip, paper or strong. ridge: of every regression, relative to the mean variance of
    its inputs (null: chosen by cross-validation over the images). correct: every layer that writes into the
    residual stream is fitted to what is missing there, and every convolution on the patches that it reads; without
    it all weights are of the form sum_i M_i W_i U_i. row_weights: tokens count by how much the features depend on
    them. rows_per_unit: tokens, or positions of an image, per regressor that a layer is fitted to, sampled over
    all images where there are more (an MLP has one per image and takes all). steps: training steps afterwards, in
    which all weights and the projectors are fitted to the sources' features on fresh views, at the learning rates
    of method=kd after such a start (0: none). Units that activations or depthwise convolutions act on (all of a
    convolutional network's) are selected, each from one source. reset_batchnorm, repair: see `Resets`.
    """

    uses_images: ClassVar[bool] = True
    solves: ClassVar[bool] = False  # a training may follow, which needs no fp64

    name: Literal["fs_closed_form"] = "fs_closed_form"
    heads: HeadCount | None = "all"
    views: Count | None = None
    augment: Augment = "strong"
    ridge: NonNegativeFloat | None = None
    correct: Flag = True
    row_weights: Flag = True
    rows_per_unit: PositiveFloat = ROWS_PER_UNIT
    steps: Count = 0

    def check(self, problem: Problem) -> None:
        """Raise UserError without images, for too large a width, or an architecture of another kind."""
        check_closed_form(problem, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Solve layer by layer, and train where there are steps."""
        self.check(problem)
        options = ClosedFormOptions(
            self.ridge,
            self.correct,
            self.row_weights,
            self.rows_per_unit,
            problem.hardware.eval_batch,
            problem.seed,
        )
        found = solve(problem, options, self.views, self.augment, self.layers_to_reset(problem.plan))
        return self._trained(problem, found) if self.steps else found

    def training(self) -> Distillation:
        """The training of `steps` steps after the solution."""
        return replace(FEATURES_ONLY, steps=self.steps, augment=self.augment)

    def _trained(self, problem: Problem, found: Solution) -> Solution:
        """The solution after `steps` steps on all images; its maps fold to the solution before."""
        every = torch.arange(len(problem.images))
        images = replace(problem.images, train=every, validation=every[:0])
        network = PlainStudent(problem, found.weights, found.projectors)
        trace = self.training().train(replace(problem, images=images), network)
        solution = replace(network.solution(trace), facts=found.facts)
        if found.stages:
            return replace(solution, stages=found.stages, finetuned=True)
        if found.maps is None:
            return solution
        stage = Stage(problem.plan, found.maps, problem.weights("cpu"), found.weights)
        return replace(solution, stages=(stage,), finetuned=True)


FEATURES_ONLY = Distillation(start="closed_form", mixup=0.0, logit_weight=0.0, outlier_exposure=0.0)
"""The training after the closed form: near the solution the other losses and mixtures cost more than they give."""
