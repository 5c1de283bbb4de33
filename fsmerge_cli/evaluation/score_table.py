"""The rows of the score table: sources, ensemble, plain average and merged model, on the same images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fsmerge_cli.checkpoints.dtype import rounded_head
from fsmerge_cli.checkpoints.stated import Stated
from fsmerge_cli.common.inputs import feature_rows, stack
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.held_back import Measured
from fsmerge_cli.evaluation.certificates import IMAGES, EvaluatedBatch
from fsmerge_cli.evaluation.class_results import class_results, joint_confusion
from fsmerge_cli.evaluation.forward import Forward, Outputs, merged_forward
from fsmerge_cli.evaluation.predictions import Example, examples, predictions_by_task
from fsmerge_cli.evaluation.scorer import Scorer
from fsmerge_cli.evaluation.scoring import Score, single_task_rows
from fsmerge_cli.evaluation.similarity import Layers, similarities
from fsmerge_cli.evaluation.tokens import TokenAgreement, token_agreement
from fsmerge_cli.methods import Method, Problem, Solution
from fsmerge_cli.methods.average import Average
from fsmerge_cli.supernet.fold import fold_head


@dataclass(frozen=True)
class Evaluation:
    """Rows by name, and the merged model's similarity to the sources by task and layer.

    evaluated: a few images with all logits. predictions: by task, see `predictions_by_task`. examples: images for
    the report page. warnings: on sources whose accuracy is not plausible. measured: where the images of each task
    come from, by name. classes, joint_confusion: see `class_results`. tokens: by source without a head.
    """

    rows: Mapping[str, Score] = field(default_factory=dict)
    similarity: Mapping[str, Layers] = field(default_factory=dict)
    evaluated: EvaluatedBatch | None = None
    predictions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    warnings: Sequence[str] = ()
    measured: Mapping[str, Measured] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    joint_confusion: Mapping[str, Any] | None = None
    tokens: Mapping[str, TokenAgreement] = field(default_factory=dict)


def evaluate(
    problem: Problem,
    solution: Solution,
    measured: Sequence[Measured],
    method: Method,
    extra_rows: Mapping[str, Solution] | None = None,
    stated: Mapping[str, Stated] | None = None,
) -> Evaluation:
    """Scores of the sources, the plain average, `extra_rows` and the solution; empty without images.

    measured: the images of each task. stated: by task, the accuracy that the files of its source state.
    """
    sets = [own.images for own in measured]
    if not any(sets):
        return Evaluation()
    heads = {source.name: source.head for source in problem.sources}
    scorer = Scorer.of(heads, sets, problem.images, problem.hardware, problem.device, problem.progress)
    ensemble, reference = scorer.sources(problem.sources)
    rows = {**single_task_rows(ensemble, problem.plan.tasks), "ensemble": ensemble}
    plain = _is_plain_average(method, problem)
    others = dict(extra_rows or {})
    if not problem.plan.distilled:  # weights of unlike architectures have no mean
        average = solution if plain else Average(reset_batchnorm=False).fit(problem)
        others = {"average": average, **others}
    for name, other in others.items():
        if other is not solution:
            forward = forward_of(problem, other, backbone_of(problem, other), name == "average")
            rows[name], _ = scorer.row(name, forward, reference)
    backbone = backbone_of(problem, solution)
    merged, outputs = scorer.row("merged", forward_of(problem, solution, backbone, plain), reference)
    rows |= {name: rows.get(name, merged) for name in (*others, "merged")}
    given = outputs.logits, reference.logits, scorer.truth, scorer.heads
    shown = examples(sets, *given, problem.seed)
    if any(own.of != "task" for own in measured):  # these images belong to no task
        rows = {name: replace(row, chosen={}) for name, row in rows.items()}
        shown = tuple(replace(example, other_task=None) for example in shown)
    return Evaluation(
        rows,
        similarities(problem, backbone, sets),
        _evaluated_batch(sets, outputs),
        predictions_by_task(*given, merged.agreement),
        shown,
        scorer.warnings(reference, stated or {}),
        {name: own for name, own in zip(problem.plan.tasks, measured) if own.images},
        class_results(*given),
        joint_confusion(outputs.logits, scorer.truth, scorer.heads, merged.decision),
        token_agreement(problem, backbone, sets),
    )


def _is_plain_average(method: Method, problem: Problem) -> bool:
    """Whether the method is the one of the row `average`: equal weights, without a reset of BatchNorm."""
    if not isinstance(method, Average) or method.resets(problem):
        return False
    return len({*method.weights_of_tasks(len(problem.sources))}) == 1


def backbone_of(problem: Problem, solution: Solution) -> nn.Module:
    """The merged backbone in evaluation mode."""
    backbone = problem.plan.skeleton()
    backbone.load_state_dict(dict(solution.weights), assign=True)
    return backbone.eval()


def forward_of(problem: Problem, solution: Solution, backbone: nn.Module, reused: bool = False) -> Forward:
    """The merged model with its projectors and heads. reused: other runs evaluate the same model."""
    pairs = zip(problem.sources, solution.projectors)
    heads = [
        rounded_head(fold_head(s.head.to(problem.device), U), solution.dtype) if s.head else None for s, U in pairs
    ]
    plan = problem.plan
    network = (plan.family, plan.arch, solution.weights) if reused else None
    return merged_forward(backbone, solution.projectors, heads, network, [s.dense for s in problem.sources])


def _evaluated_batch(sets: Sequence[ImageSet | None], outputs: Outputs) -> EvaluatedBatch:
    """The first test images of every task with the logits of all heads."""
    own = [s for s in sets if s]
    share = math.ceil(IMAGES / len(own))
    starts = itertools.accumulate([0, *map(len, own)])
    picked = [(s, start + i, i) for s, start in zip(own, starts) for i in range(min(share, len(s)))]
    counts = torch.tensor([len(s.labels(i)) for s in own for i in range(len(s))]) if own[0].tags else None
    rows = feature_rows(counts, torch.tensor([row for _, row, _ in picked]))
    return EvaluatedBatch(stack([s[i][0] for s, _, i in picked]), [logits[rows] for logits in outputs.every])
