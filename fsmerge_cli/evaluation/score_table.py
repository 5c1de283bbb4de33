"""The rows of the score table: sources, ensemble, plain average and merged model, on the same images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.checkpoints.dtype import rounded_head
from fsmerge_cli.checkpoints.stated import Stated
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.inputs import feature_rows, per_feature, reads, stack
from fsmerge_cli.common.progress import Progress
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.held_back import Measured
from fsmerge_cli.evaluation.certificates import IMAGES, EvaluatedBatch
from fsmerge_cli.evaluation.class_results import class_results, joint_confusion
from fsmerge_cli.evaluation.forward import Forward, Outputs, TestSet, ensemble_forward, merged_forward
from fsmerge_cli.evaluation.joint import Decision, best_decision, expected_labels
from fsmerge_cli.evaluation.metrics import matched_temperatures, temperatures
from fsmerge_cli.evaluation.neighbours import neighbours_by_task
from fsmerge_cli.evaluation.plausibility import implausible, worded_note
from fsmerge_cli.evaluation.predictions import Example, Heads, agreement, examples, predictions_by_task
from fsmerge_cli.evaluation.scoring import Score, score, single_task_rows
from fsmerge_cli.evaluation.similarity import Layers, similarities
from fsmerge_cli.evaluation.tokens import TokenAgreement, token_agreement
from fsmerge_cli.methods import Method, Problem, Solution
from fsmerge_cli.methods.average import Average
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold_head
from fsmerge_cli.training.teachers import batches


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


@dataclass(frozen=True)
class Scorer:
    """Scores models on the same test images, and calibrates them on the same unlabelled images.

    tasks: names, in the order of the test sets. truth: task index and class index of every test image. heads: the
    tasks with a head; labels: class names of every head for the joint predictions. images: unlabelled, for the
    temperatures (None: there are none).
    """

    tasks: tuple[str, ...]
    tests: TestSet
    truth: tuple[Tensor, Tensor]
    heads: Heads
    labels: Sequence[Sequence[str]]
    images: Images | None
    hardware: Hardware
    device: torch.device
    progress: Progress

    @classmethod
    def of(
        cls,
        heads: Mapping[str, Head | None],
        sets: Sequence[ImageSet | None],
        images: Images | None,
        hardware: Hardware,
        device: torch.device,
        progress: Progress,
    ) -> Scorer:
        """A scorer of tasks with their heads and test images, both in the same order."""
        tests = TestSet(tuple(heads), tuple(sets), hardware, device, progress)
        # Classes without label names differ from those of every other head, even if their indices are equal.
        labels = [
            head.labels if head.named else tuple(f"{name} {label}" for label in head.labels)
            for name, head in heads.items()
            if head
        ]
        entries = [(name, i, head.labels) for i, (name, head) in enumerate(heads.items()) if head]
        given = Heads([name for name, _, _ in entries], [i for _, i, _ in entries], [own for _, _, own in entries])
        return cls(tuple(heads), tests, tests.truth(), given, labels, images, hardware, device, progress)

    def sources(self, sources: Sequence[Source]) -> tuple[Score, Outputs]:
        """Score the ensemble of the sources. Its outputs are the reference of all other rows."""
        outputs = self._outputs("sources", ensemble_forward(sources, self.device))
        return self._score(outputs, outputs), outputs

    def row(
        self, name: str, forward: Forward, reference: Outputs | None = None, decision: Decision | None = None
    ) -> tuple[Score, Outputs]:
        """Score one model.

        reference: outputs of the sources (None: they are not available). decision: of the model as it was written
        (None: the best one is chosen).
        """
        outputs = self._outputs(name, forward)
        return self._score(outputs, reference, decision), outputs

    def warnings(self, outputs: Outputs, stated: Mapping[str, Stated]) -> list[str]:
        """Warnings on the heads whose accuracy is not plausible. stated: accuracies by task, where known."""
        found = []
        heads = self.heads
        for name, index, labels, logits in zip(heads.tasks, heads.index, heads.labels, outputs.logits):
            own = (self.truth[0] == index) & (self.truth[1] >= 0)
            if logits.shape[1] == len(labels):
                found.append(
                    implausible(name, logits[own].argmax(1), self.truth[1][own], labels, stated.get(name))
                )
        of_words = any(own.tags for own in self.tests.sets if own)
        return [worded_note(warning, "word") if of_words else warning for warning in found if warning]

    def _outputs(self, name: str, forward: Forward) -> Outputs:
        found = self.tests.predict(forward, name)
        needed = self._has_joint or name in ("sources", "merged")  # the written model has a joint decision
        return replace(found, calibrating=self._calibrating(forward) if needed else ())

    def _score(self, outputs: Outputs, reference: Outputs | None, decision: Decision | None = None) -> Score:
        temperatures = self._temperatures(outputs, reference)
        place = self._heads_of_images()
        if decision is None and outputs.calibrating and (reference is not None or place is not None):
            expected = expected_labels((reference or outputs).calibrating, place)
            decision = best_decision(outputs.calibrating, expected, temperatures)
        given = self.truth, self.tasks, self.heads.index, self.labels, temperatures, decision
        found = score(outputs, reference or outputs, *given)
        if reference is None or outputs is reference:
            return found
        agreed = agreement(outputs.logits, reference.logits, self.truth[0], self.heads)
        nearest = neighbours_by_task(
            outputs.features, reference.features, self.truth[0], self.tasks, self.heads.index
        )
        return replace(found, agreement=agreed, neighbours=nearest)

    @property
    def _has_joint(self) -> bool:
        """Whether joint accuracy is defined: several heads, and labelled test images."""
        return len(self.heads.index) > 1 and bool((self.truth[1] >= 0).any())

    @property
    def _every_task_has_images(self) -> bool:
        """Whether there are unlabelled images of every task with a head."""
        return self.images is not None and set(self.heads.index) <= set(self.images.task.tolist())

    def _heads_of_images(self) -> Tensor | None:
        """The head of the task of each image of `_calibrating`; None where some task has no images.

        Of texts that are read word by word, of each word.
        """
        if self.images is None or not self._every_task_has_images:
            return None
        position = {index: place for place, index in enumerate(self.heads.index)}
        task = per_feature(self.images.task, reads(self.images.images))
        return torch.tensor([position[own] for own in task.tolist() if own in position])

    def _calibrating(self, forward: Forward) -> list[Tensor]:
        """Logits of every head on the images that temperatures are fitted on.

        These are the images of the tasks; if some task has none, all images.
        """
        if self.images is None or not len(self.images) or len(self.heads.index) < 2:
            return []
        rows = torch.arange(len(self.images))
        if self._every_task_has_images:
            rows = rows[torch.isin(self.images.task, torch.tensor(self.heads.index))]
        parts: list[list[Tensor]] = []
        with torch.inference_mode():
            for part in batches(len(rows), self.hardware.eval_batch):
                _, logits = forward(self.images.images[rows[part]].to(self.device))
                parts.append([a.float().cpu() for a in logits])
        return [torch.cat(own) for own in zip(*parts)]

    def _temperatures(self, outputs: Outputs, reference: Outputs | None) -> list[float]:
        """One temperature per head, fitted on the unlabelled images of the merge.

        If every task has images, the task indices serve as labels (`temperatures`). Otherwise the predictions of
        each head's source do (`matched_temperatures`; 1.0 for the sources themselves). Empty without either.
        """
        if self.images is None:
            return []
        ones = [1.0] * len(self.heads.index)
        if not self._has_joint:
            return ones  # they are not used
        if self._every_task_has_images:
            place = self._heads_of_images()
            return temperatures(outputs.calibrating, torch.empty(0) if place is None else place)
        if reference is None or not outputs.calibrating:
            return []
        return ones if outputs is reference else matched_temperatures(outputs.calibrating, reference.calibrating)


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
    return merged_forward(backbone, solution.projectors, heads, network)


def _evaluated_batch(sets: Sequence[ImageSet | None], outputs: Outputs) -> EvaluatedBatch:
    """The first test images of every task with the logits of all heads."""
    own = [s for s in sets if s]
    share = math.ceil(IMAGES / len(own))
    starts = itertools.accumulate([0, *map(len, own)])
    picked = [(s, start + i, i) for s, start in zip(own, starts) for i in range(min(share, len(s)))]
    counts = torch.tensor([len(s.labels(i)) for s in own for i in range(len(s))]) if own[0].tags else None
    rows = feature_rows(counts, torch.tensor([row for _, row, _ in picked]))
    return EvaluatedBatch(stack([s[i][0] for s, _, i in picked]), [logits[rows] for logits in outputs.logits])
