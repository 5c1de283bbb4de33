"""The rows of the score table: sources, ensemble, plain average and merged model, measured alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.answers import Example, Heads, compared, examples
from fsmerge_cli.certificates import IMAGES, Evaluated
from fsmerge_cli.data import ImageSet
from fsmerge_cli.features import batches
from fsmerge_cli.fold import fold_head
from fsmerge_cli.methods import Method, Problem, Solution
from fsmerge_cli.methods.average import Average
from fsmerge_cli.metrics import temperatures
from fsmerge_cli.scoring import Forward, Outputs, Score, TestSet, ensemble_forward, merged_forward, score
from fsmerge_cli.similarity import Layers, similarities


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


def evaluate(problem: Problem, solution: Solution, sets: Sequence[ImageSet | None], method: Method) -> Evaluation:
    """Measure the solution beside its sources; nothing without test images."""
    if not any(sets):
        return Evaluation()
    bench = _Bench.of(problem, sets)
    ensemble, reference = bench.row("sources", ensemble_forward(problem.sources, problem.device))
    alone = {
        name: Score({name: ensemble.tasks[name]} if name in ensemble.tasks else {}, {}, {name: values})
        for name, values in ensemble.features.items()
    }
    rows = {**{name: alone.get(name, Score({}, {}, {})) for name in problem.plan.tasks}, "ensemble": ensemble}
    plain = isinstance(method, Average) and len({*method.weights_of_tasks(len(problem.sources))}) == 1
    candidates = {"average": solution if plain else Average().fit(problem)}
    if not plain:
        candidates["merged"] = solution
    for name, candidate in candidates.items():
        backbone = _backbone(problem, candidate)
        rows[name], outputs = bench.row(name, _forward(problem, candidate, backbone), reference)
    if plain:
        rows["merged"] = rows["average"]
    heads = Heads([problem.plan.tasks[i] for i in bench.headed], bench.headed, bench.own_labels())
    given = outputs.logits, reference.logits, bench.truth, heads
    return Evaluation(
        rows,
        similarities(problem, backbone, sets),
        _seen(sets, outputs),
        compared(*given),
        examples(sets, *given, problem.seed),
    )


@dataclass(frozen=True)
class _Bench:
    """What every row is measured on: test images with their truth, and the queries, whose labels nobody knows."""

    problem: Problem
    tests: TestSet
    truth: tuple[Tensor, Tensor]
    headed: Sequence[int]
    labels: Sequence[Sequence[str]]

    @classmethod
    def of(cls, problem: Problem, sets: Sequence[ImageSet | None]) -> _Bench:
        """The bench of one problem."""
        hardware, sources = problem.hardware, problem.sources
        tests = TestSet(problem.plan.tasks, tuple(sets), hardware.workers, hardware.eval_batch)
        # Rows of a head without label names are nobody else's classes, whatever their numbers.
        labels = [
            s.head.labels if s.head.named else tuple(f"{s.name} {label}" for label in s.head.labels)
            for s in sources
            if s.head
        ]
        return cls(problem, tests, tests.truth(), [i for i, s in enumerate(sources) if s.head], labels)

    def own_labels(self) -> list[Sequence[str]]:
        """Label names of every head, as it has them."""
        return [source.head.labels for source in self.problem.sources if source.head]

    def row(self, name: str, forward: Forward, reference: Outputs | None = None) -> tuple[Score, Outputs]:
        """Measure one model; reference: the sources' own outputs (None: these are)."""
        problem = self.problem
        outputs = self.tests.predict(forward, problem.device, problem.progress, name)
        warmth = self._temperatures(forward)
        tasks = problem.plan.tasks
        return score(outputs, reference or outputs, self.truth, tasks, self.headed, self.labels, warmth), outputs

    def _temperatures(self, forward: Forward) -> list[float]:
        """One per head, fitted on the images that the merge was given: their task is known, their label is not."""
        if len(self.headed) < 2 or not bool((self.truth[1] >= 0).any()):
            return [1.0] * len(self.headed)  # nothing that they would be used for
        images = self.problem.images
        position = {index: place for place, index in enumerate(self.headed)}
        rows = torch.tensor(
            [i for i, task in enumerate(images.task.tolist()) if task in position], dtype=torch.long
        )
        parts: list[list[Tensor]] = []
        with torch.inference_mode():
            for part in batches(len(rows), self.problem.hardware.eval_batch):
                _, answers = forward(images.images[rows[part]].to(self.problem.device))
                parts.append([a.float().cpu() for a in answers])
        logits = [torch.cat(own) for own in zip(*parts)] or [torch.empty(0, len(own)) for own in self.labels]
        return temperatures(
            logits, torch.tensor([position[t] for t in images.task[rows].tolist()], dtype=torch.long)
        )


def _backbone(problem: Problem, solution: Solution) -> nn.Module:
    backbone = problem.plan.skeleton()
    backbone.load_state_dict(dict(solution.weights), assign=True)
    return backbone.eval()


def _forward(problem: Problem, solution: Solution, backbone: nn.Module) -> Forward:
    """The merged model with its readouts and heads."""
    pairs = zip(problem.sources, solution.readouts)
    heads = [fold_head(s.head.to(problem.device), U) if s.head else None for s, U in pairs]
    return merged_forward(backbone, solution.readouts, heads)


def _seen(sets: Sequence[ImageSet | None], outputs: Outputs) -> Evaluated:
    """The first test images of every task with their logits."""
    own = [s for s in sets if s]
    share = math.ceil(IMAGES / len(own))
    starts = itertools.accumulate([0, *map(len, own)])
    picked = [(s, start, i) for s, start in zip(own, starts) for i in range(min(share, len(s)))]
    rows = torch.tensor([start + i for _, start, i in picked])
    return Evaluated(torch.stack([s[i][0] for s, _, i in picked]), [logits[rows] for logits in outputs.logits])
