"""The rows of the score table: sources, ensemble, plain average and merged model, measured alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.checkpoints.dtype import rounded_head
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Progress
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.draw import Images
from fsmerge_cli.evaluation.certificates import IMAGES, Evaluated
from fsmerge_cli.evaluation.metrics import as_sure, temperatures
from fsmerge_cli.evaluation.predictions import Example, Heads, compared, examples
from fsmerge_cli.evaluation.scoring import (
    Forward,
    Outputs,
    Score,
    TestSet,
    ensemble_forward,
    merged_forward,
    score,
)
from fsmerge_cli.evaluation.similarity import Layers, similarities
from fsmerge_cli.methods import Method, Problem, Solution
from fsmerge_cli.methods.average import Average
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold_head
from fsmerge_cli.training.teachers import batches


@dataclass(frozen=True)
class Evaluation:
    """Rows by name, the merged model's likeness to the sources by task and layer, and what it answers.

    seen: a few images with all logits. answers: by task, see `answers.compared`. examples: to be looked at.
    """

    rows: Mapping[str, Score] = field(default_factory=dict)
    similarity: Mapping[str, Layers] = field(default_factory=dict)
    seen: Evaluated | None = None
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    examples: Sequence[Example] = ()


def evaluate(
    problem: Problem,
    solution: Solution,
    sets: Sequence[ImageSet | None],
    method: Method,
    rivals: Mapping[str, Solution] | None = None,
) -> Evaluation:
    """Measure the solution beside its sources, the plain average and `rivals`; nothing without test images."""
    if not any(sets):
        return Evaluation()
    heads = {source.name: source.head for source in problem.sources}
    bench = Bench.of(heads, sets, problem.images, problem.hardware, problem.device, problem.progress)
    ensemble, reference = bench.sources(problem.sources)
    rows = {**alone(ensemble, problem.plan.tasks), "ensemble": ensemble}
    plain = isinstance(method, Average) and len({*method.weights_of_tasks(len(problem.sources))}) == 1
    others = {"average": solution if plain else Average().fit(problem), **(rivals or {})}
    for name, other in others.items():
        if other is not solution:
            rows[name], _ = bench.row(name, _forward(problem, other, _backbone(problem, other)), reference)
    backbone = _backbone(problem, solution)
    merged, outputs = bench.row("merged", _forward(problem, solution, backbone), reference)
    rows |= {name: rows.get(name, merged) for name in (*others, "merged")}
    given = outputs.logits, reference.logits, bench.truth, bench.heads
    return Evaluation(
        rows,
        similarities(problem, backbone, sets),
        _seen(sets, outputs),
        compared(*given),
        examples(sets, *given, problem.seed),
    )


def alone(ensemble: Score, tasks: Sequence[str]) -> dict[str, Score]:
    """Every source on its own task, out of the row of all of them side by side."""
    return {
        name: Score(
            {name: ensemble.tasks[name]} if name in ensemble.tasks else {},
            {},
            {name: ensemble.features[name]} if name in ensemble.features else {},
        )
        for name in tasks
    }


@dataclass(frozen=True)
class Bench:
    """What every row is measured on: test images with their truth, and images whose labels nobody knows.

    tasks: by name, each with test images or none. heads: what the logits belong to; labels: class names of every
    head in the joint answers. images: for the temperatures (None: there are none).
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
    ) -> Bench:
        """The bench of tasks with their heads and test images, in one order."""
        tests = TestSet(tuple(heads), tuple(sets), hardware.workers, hardware.eval_batch)
        # Rows of a head without label names are nobody else's classes, whatever their numbers.
        labels = [
            head.labels if head.named else tuple(f"{name} {label}" for label in head.labels)
            for name, head in heads.items()
            if head
        ]
        headed = [(name, i, head.labels) for i, (name, head) in enumerate(heads.items()) if head]
        given = Heads([name for name, _, _ in headed], [i for _, i, _ in headed], [own for _, _, own in headed])
        return cls(tuple(heads), tests, tests.truth(), given, labels, images, hardware, device, progress)

    def sources(self, sources: Sequence[Source]) -> tuple[Score, Outputs]:
        """Measure the sources side by side, which gives the reference of all other rows."""
        outputs = self._outputs("sources", ensemble_forward(sources, self.device))
        return self._score(outputs, outputs), outputs

    def row(self, name: str, forward: Forward, reference: Outputs | None = None) -> tuple[Score, Outputs]:
        """Measure one model; reference: what the sources say (None: they are not there)."""
        outputs = self._outputs(name, forward)
        return self._score(outputs, reference), outputs

    def _outputs(self, name: str, forward: Forward) -> Outputs:
        found = self.tests.predict(forward, self.device, self.progress, name)
        return replace(found, calibrating=self._calibrating(forward))

    def _score(self, outputs: Outputs, reference: Outputs | None) -> Score:
        given = self.truth, self.tasks, self.heads.index, self.labels, self._temperatures(outputs, reference)
        return score(outputs, reference or outputs, *given)

    @property
    def _joint(self) -> bool:
        """Whether there are heads to be made comparable, and labels to see what it gives."""
        return len(self.heads.index) > 1 and bool((self.truth[1] >= 0).any())

    @property
    def _all_known(self) -> bool:
        """Whether images of every head's task are there."""
        return self.images is not None and set(self.heads.index) <= set(self.images.task.tolist())

    def _calibrating(self, forward: Forward) -> list[Tensor]:
        """What a model says, by head, about the images that temperatures are fitted on.

        Those of the tasks; all that there are, alike for every head, where a task has none.
        """
        if self.images is None or not self._joint:
            return []
        rows = torch.arange(len(self.images))
        if self._all_known:
            rows = rows[torch.isin(self.images.task, torch.tensor(self.heads.index))]
        parts: list[list[Tensor]] = []
        with torch.inference_mode():
            for part in batches(len(rows), self.hardware.eval_batch):
                _, answers = forward(self.images.images[rows[part]].to(self.device))
                parts.append([a.float().cpu() for a in answers])
        return [torch.cat(own) for own in zip(*parts)]

    def _temperatures(self, outputs: Outputs, reference: Outputs | None) -> list[float]:
        """One per head, fitted on the images that the merge was given, whose labels are not known.

        Where images of all tasks are there, the tasks take the labels' place. Else the answers of each head's
        source do (which gives the sources 1). Empty where neither is there.
        """
        if self.images is None:
            return []
        ones = [1.0] * len(self.heads.index)
        if not self._joint:
            return ones  # nothing that they would be used for
        if self._all_known:
            position = {index: place for place, index in enumerate(self.heads.index)}
            task = [position[own] for own in self.images.task.tolist() if own in position]
            return temperatures(outputs.calibrating, torch.tensor(task, dtype=torch.long))
        if reference is None or not outputs.calibrating:
            return []
        # A source is as sure as itself.
        return ones if outputs is reference else as_sure(outputs.calibrating, reference.calibrating)


def _backbone(problem: Problem, solution: Solution) -> nn.Module:
    backbone = problem.plan.skeleton()
    backbone.load_state_dict(dict(solution.weights), assign=True)
    return backbone.eval()


def _forward(problem: Problem, solution: Solution, backbone: nn.Module) -> Forward:
    """The merged model with its projectors and heads."""
    pairs = zip(problem.sources, solution.projectors)
    heads = [
        rounded_head(fold_head(s.head.to(problem.device), U), solution.dtype) if s.head else None for s, U in pairs
    ]
    return merged_forward(backbone, solution.projectors, heads)


def _seen(sets: Sequence[ImageSet | None], outputs: Outputs) -> Evaluated:
    """The first test images of every task with their logits."""
    own = [s for s in sets if s]
    share = math.ceil(IMAGES / len(own))
    starts = itertools.accumulate([0, *map(len, own)])
    picked = [(s, start, i) for s, start in zip(own, starts) for i in range(min(share, len(s)))]
    rows = torch.tensor([start + i for _, start, i in picked])
    return Evaluated(torch.stack([s[i][0] for s, _, i in picked]), [logits[rows] for logits in outputs.logits])
