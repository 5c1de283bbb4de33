"""`fsmerge curve`: two sources -> their alignment -> networks on the line between them -> loss and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fsmerge_cli.alignment.channels import reset_layers, with_reset
from fsmerge_cli.alignment.matching import Aligned, aligned, match_to_first, reorder_sources
from fsmerge_cli.alignment.weight_matching import match_weights
from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.checkpoints.headers import read_headers
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.options import build
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.shown import listed
from fsmerge_cli.common.wording import worded, worded_progress
from fsmerge_cli.data import Task
from fsmerge_cli.data.from_python import Data
from fsmerge_cli.data.readers import reader, require_same_kind
from fsmerge_cli.data.sampling import TestImages, prepare_images
from fsmerge_cli.evaluation.forward import Outputs, TestSet, ensemble_forward, merged_forward
from fsmerge_cli.evaluation.interpolation import barriers, between, head_between, measured, share_a_task
from fsmerge_cli.evaluation.score_table import backbone_of
from fsmerge_cli.methods import Problem, Solution
from fsmerge_cli.models.duplicates import duplicate_notes
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.reporting.terminal import reported
from fsmerge_cli.runs.curve_result import Curve, CurveOptions, Line
from fsmerge_cli.runs.merge import problem_of
from fsmerge_cli.runs.request import Models, Request, request

METHODS = {"weights": "weight_matching", "activations": "activation_matching", "none": "average"}
"""The method whose merge of two sources is the middle of the line with this alignment."""

RESTARTS = 3
"""Restarts of weight matching, as `method=weight_matching` has."""


def curve(
    models: Models,
    *,
    align: str = "weights",
    points: int = 11,
    repair: bool = False,
    data: Data | None = None,
    hardware: str | Mapping[str, Any] | Hardware = "auto",
    seed: int = 0,
    progress: Progress | bool = False,
) -> Curve:
    """Measure the networks (1 - alpha) W_1 + alpha W_2 between two sources, before and after their alignment.

    models, data, hardware, seed, progress: as in `merge`. align: weights (weight matching, without images),
    activations (activation matching), or none (one line only). points: of each line, evenly spaced from 0 to 1.
    repair: reset the statistics at each point (REPAIR). Loss and accuracy are those of labelled test images of the
    task that both sources share; agreement and feature error need no labels.

    Raises UserError where the input is wrong, MismatchError where the sources do not fit together.
    """
    options = build(CurveOptions, {"align": align, "points": points, "repair": repair}, "curve")
    found = curve_request(models, options, data, hardware, seed)
    with ExitStack() as stack:
        report = stack.enter_context(reported(progress))
        opened = read_headers(found.sources)
        plan = found.method.plan([own.source for own in opened])
        require_one_shape(plan.same_shape)
        require_statistics(options, plan)
        report = worded_progress(report, opened[0].source.family.kind)
        device = stack.enter_context(found.hardware.session())
        sources = load_all(found.sources, report)
        problem, tests, notes = _problem(found, sources, device, report)
        return _curve(found, options, problem, tests, notes)


def curve_request(
    models: Models,
    options: CurveOptions,
    data: Data | None,
    hardware: str | Mapping[str, Any] | Hardware,
    seed: int,
) -> Request:
    """The validated request. Raises ConfigError for other than two sources, DataError without a data set."""
    method = METHODS[options.align]
    found = request(models, method, data, hardware, seed, overwrite=False, images_needed=False)
    if len(found.sources) != 2:
        raise ConfigError(
            f"fsmerge curve takes two sources, but there are {len(found.sources)} "
            f"({', '.join(spec.name for spec in found.sources)}). Give two."
        )
    if found.hardware.distributed:
        raise ConfigError("a curve is computed in one process. Pass hardware.distributed=false, or hardware=gpu.")
    if found.data is None:
        raise DataError(
            "a curve is measured on images, and no data set is given. Pass --images FOLDER or data=NAME; with "
            "labels (class folders) loss and accuracy are measured, without them agreement and feature error."
        )
    return found


def require_one_shape(same: bool) -> None:
    """Raise ConfigError where there is no line between the weights."""
    if not same:
        raise ConfigError(
            "there is no straight line between weights of different widths or numbers of heads. Give two sources "
            "of one shape, or merge these: fsmerge merge ... method=fs_merge"
        )


def _problem(
    found: Request, sources: Sequence[Source], device: torch.device, progress: Progress
) -> tuple[Problem, TestImages, list[str]]:
    """As `problem_of`; the images of sources that share a task are those of one task, that of source 1."""
    if not share_a_task(sources[0].head, sources[1].head) or found.data is None:
        return problem_of(found, sources, device, progress)
    first, seed = sources[0], found.run.seed
    tasks = [replace(Task.of(first.name, first.head), own_data=True)]
    require_same_kind(found.data, [first.name], first)
    given = partial(reader, first), seed, found.hardware.workers, progress, found.method.needs_images
    tests, images, notes = prepare_images(found.data, tasks, *given)
    plan = found.method.plan(sources)
    return Problem(plan, sources, images, found.hardware, device, seed, progress), tests, notes


def _curve(
    found: Request, options: CurveOptions, problem: Problem, tests: TestImages, notes: Sequence[str]
) -> Curve:
    used = [own for own in tests.sets if own]
    if not used:
        raise DataError(
            f"data={found.data.name if found.data else None} has no images that a curve can be measured on. Pass "
            "test images, or more images (data.images_per_task), of which some are then held back."
        )
    require_images(options, problem)
    first, second = problem.sources
    if numbers := [own.name for own in problem.sources if own.head is not None and own.head.regression]:
        raise ConfigError(f"a curve measures predicted classes, and {listed(numbers)} predicts a number.")
    one = share_a_task(first.head, second.head)
    names = problem.plan.tasks[: len(tests.sets)]
    test_set = TestSet(names, tuple(tests.sets), problem.hardware, problem.device, problem.progress)
    truth = test_set.truth()
    own = test_set.predict(ensemble_forward(problem.sources, problem.device), "sources")
    lines = []
    for alignment in dict.fromkeys(("none", options.align)):
        matched = align_to_first(problem, alignment)
        heads = [s.head for s in matched.problem.sources]
        place = [i for i, head in enumerate(heads) if head]
        line = []
        for step in range(options.points):
            alpha = step / (options.points - 1)
            outputs = _outputs(matched, alpha, options.repair, one, test_set)
            line.append(measured(alpha, outputs, own, truth, place, one))
            what = "the line without alignment" if alignment == "none" else "the line after alignment"
            problem.progress(Event(f"evaluate {what}", step + 1, options.points))
        lines.append(Line(alignment, tuple(line), barriers(line)))
    more = [*found.notes, *(n for s in problem.sources for n in s.notes), *duplicate_notes(problem.sources)]
    kind = problem.plan.family.kind
    return Curve(
        tuple(lines),
        tuple((source.name, source.sha256) for source in problem.sources),
        len(test_set),
        tuple(worded(note, kind) for note in dict.fromkeys([*notes, *more, *_task_notes(problem, one, truth)])),
        {"align": options.align, "points": options.points, "repair": options.repair, "seed": found.run.seed},
        kind,
        found.inputs(),
    )


def require_images(options: CurveOptions, problem: Problem) -> None:
    """Raise DataError where an option needs unlabelled images and there are none."""
    needing = [key for key, on in _needs(options).items() if on]
    if needing and not len(problem.images):
        raise DataError(
            f"{needing[0]} needs unlabelled images of the task. Pass data=... with data.images_per_task of 1 or "
            "more, or curve.align=weights and curve.repair=false, which need none."
        )


def require_statistics(options: CurveOptions, plan: Plan) -> None:
    """Raise ConfigError for curve.repair of networks without layers whose statistics can be reset."""
    if options.repair and not reset_layers(plan, others=True):
        raise ConfigError(
            "curve.repair=true resets the statistics of convolutions with BatchNorm and of hidden layers with a "
            "bias and without a norm, and these networks have none. Pass curve.repair=false."
        )


def _needs(options: CurveOptions) -> dict[str, bool]:
    return {"curve.align=activations": options.align == "activations", "curve.repair=true": options.repair}


def align_to_first(problem: Problem, alignment: str) -> Aligned:
    """The problem with source 2 in the order of source 1."""
    if alignment == "none":
        return aligned(problem, "none")
    orders = match_weights(problem, RESTARTS) if alignment == "weights" else match_to_first(problem)
    return reorder_sources(problem, orders)


def weights_at(matched: Aligned, alpha: float, repair: bool) -> Solution:
    """The network at one point of the line between two aligned sources."""
    problem = matched.problem
    first, second = problem.weights()
    solution = Solution(between(first, second, alpha), matched.back)
    if not repair:
        return solution
    return with_reset(problem, solution, (2 * (1 - alpha), 2 * alpha), reset_layers(problem.plan, others=True))


def _outputs(matched: Aligned, alpha: float, repair: bool, one: bool, test_set: TestSet) -> Outputs:
    """The outputs of the network at one point: of one head, or of the heads of both sources."""
    problem = matched.problem
    solution = weights_at(matched, alpha, repair)
    heads = [source.head for source in problem.sources]
    first, second = heads
    if one and first is not None and second is not None:
        heads = [head_between(first, second, alpha)]
    moved = [head.to(problem.device) for head in heads if head]
    forward = merged_forward(backbone_of(problem, solution), matched.back, moved)
    return replace(test_set, progress=silent).predict(forward, "")  # the progress counts points


def _task_notes(problem: Problem, one: bool, truth: tuple[torch.Tensor, torch.Tensor]) -> list[str]:
    first, second = (source.head for source in problem.sources)
    names = " and ".join(f"'{source.name}'" for source in problem.sources)
    if one and first is not None and not first.named:
        return [f"{names} have no class names: class i of the one was taken as class i of the other"]
    if one and not bool((truth[1] >= 0).any()):
        return ["no image has a label: only agreement and feature error were measured"]
    if one:
        return []
    if first is None or second is None:
        return [f"{names} do not both have a head: loss and accuracy were not measured"]
    return [
        f"{names} have different classes, so that no head lies between theirs: loss and accuracy were not "
        "measured, and each was compared on its own images"
    ]
