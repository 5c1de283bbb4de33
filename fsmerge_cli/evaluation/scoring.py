"""Accuracy, loss and calibration of a model: per task, and joint (the task is not given)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fsmerge_cli.evaluation.forward import Outputs
from fsmerge_cli.evaluation.joint import Decision
from fsmerge_cli.evaluation.metrics import FeatureSimilarity, calibration_error, interval, pearson, spearman, top
from fsmerge_cli.evaluation.neighbours import Neighbours
from fsmerge_cli.evaluation.predictions import ChosenTasks, chosen_tasks
from fsmerge_cli.evaluation.probes import Probe


@dataclass(frozen=True)
class TaskScore:
    """Metrics on one task's test images, among the task's own labels.

    count: number of images. top1: top-1 accuracy, a share. interval: its 95 % Wilson interval. top5: None for five
    labels or fewer. loss: mean cross-entropy (nats). calibration_error: expected calibration error, 15 bins.
    """

    count: int
    top1: float
    interval: tuple[float, float]
    top5: float | None
    loss: float
    calibration_error: float


@dataclass(frozen=True)
class NumberScore:
    """Metrics of predicted numbers on one task's test texts.

    count: number of texts. pearson, spearman: correlations with the labels (None: a constant). loss: mean squared
    error.
    """

    count: int
    pearson: float | None
    spearman: float | None
    loss: float


@dataclass(frozen=True)
class Score:
    """One row of the score table.

    tasks: by name. joint: joint accuracy (the task is not given: the prediction is the best label over all tasks),
    a share, by protocol (`softmax`: the largest probability of all heads' softmax outputs; `logits`: the largest
    raw logit; `..._calibrated`: the same after dividing by one temperature per head; `classifier`: by `decision`);
    empty for a single source.
    features: similarity of the estimated features to the source's, by task (error relative to their variance,
    cosine, cka). temperatures: by task. correct: whether each prediction is correct, `task.NAME` [n of the task]
    and `joint.PROTOCOL` [n], in the order of the test images. chosen: number of images by protocol, task of the
    image and task whose label is predicted. agreement: by task, number of images, and of those on which the model
    predicts the label that the source predicts; empty for the sources. neighbours: the same for tasks without a
    head, by their features. probes: by task without a head and with labelled images. decision: of the written
    classifier, for the tasks `heads`. numbers: by task that predicts a number.
    """

    tasks: Mapping[str, TaskScore]
    joint: Mapping[str, float]
    features: Mapping[str, Mapping[str, float | None]]
    temperatures: Mapping[str, float] = field(default_factory=dict)
    correct: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    chosen: ChosenTasks = field(default_factory=dict)
    agreement: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    neighbours: Mapping[str, Neighbours] = field(default_factory=dict)
    probes: Mapping[str, Probe] = field(default_factory=dict)
    decision: Decision | None = None
    heads: Sequence[str] = ()
    numbers: Mapping[str, NumberScore] = field(default_factory=dict)

    @property
    def decisions(self) -> dict[str, dict[str, float]]:
        """The decision by task; empty without one."""
        if self.decision is None:
            return {}
        found = zip(self.heads, self.decision.temperatures, self.decision.shifts)
        return {name: {"temperature": t, "shift": s} for name, t, s in found}

    @property
    def mean(self) -> float | None:
        """Mean top-1 accuracy over tasks; None without labels."""
        return sum(t.top1 for t in self.tasks.values()) / len(self.tasks) if self.tasks else None


def score(
    outputs: Outputs,
    reference: Outputs,
    truth: tuple[Tensor, Tensor],
    tasks: Sequence[str],
    heads: Sequence[int],
    labels: Sequence[Sequence[str]],
    temperatures: Sequence[float] = (),
    decision: Decision | None = None,
) -> Score:
    """Compare a model's outputs with the labels and with the sources' features (`reference`).

    truth: task [n] and class [n]. heads: task index of each entry of `outputs.logits`; labels: its class names;
    temperatures: its temperature (empty: no calibration); decision: of the written classifier (None: there is
    none). Features are compared if the model estimates them.
    """
    task, label = truth
    scores: dict[str, TaskScore] = {}
    correct: dict[str, Tensor] = {}
    for position, index in enumerate(heads):
        own = (task == index) & (label >= 0)
        if bool(own.any()):
            logits = outputs.logits[position][own]
            scores[tasks[index]] = task_score(logits, label[own])
            correct[f"task.{tasks[index]}"] = logits.argmax(1) == label[own]
    joint: dict[str, Tensor] = {}
    if len(heads) > 1 and scores:
        joint = _joint(outputs.logits, task, label, heads, labels)
    if joint and temperatures:
        scaled = [a / t for a, t in zip(outputs.logits, temperatures)]
        calibrated = _joint(scaled, task, label, heads, labels)
        joint |= {f"{protocol}_calibrated": found for protocol, found in calibrated.items()}
    if joint and decision:
        joint["classifier"] = _joint([decision.logits(outputs.logits)], task, label, heads, labels)["logits"]
    correct |= {f"joint.{protocol}": found for protocol, found in joint.items()}
    shares = {protocol: found.double().mean().item() for protocol, found in joint.items()}
    features = {}
    for index, name in enumerate(tasks):
        own = task == index
        if outputs.features and bool(own.any()):
            similarity = FeatureSimilarity()
            similarity.add(outputs.features[index][own], reference.features[index][own])
            features[name] = similarity.values()
    found = {tasks[i]: t for i, t in zip(heads, temperatures)} if joint else {}
    chosen = chosen_tasks(outputs.logits, task, heads, tasks)
    names = [tasks[index] for index in heads]
    return Score(scores, shares, features, found, correct, chosen, decision=decision, heads=names)


def single_task_rows(ensemble: Score, tasks: Sequence[str]) -> dict[str, Score]:
    """One row per source on its own task, taken from the row of the ensemble."""
    return {
        name: Score(
            {name: ensemble.tasks[name]} if name in ensemble.tasks else {},
            {},
            {name: ensemble.features[name]} if name in ensemble.features else {},
            numbers={name: ensemble.numbers[name]} if name in ensemble.numbers else {},
            probes={name: ensemble.probes[name]} if name in ensemble.probes else {},
        )
        for name in tasks
    }


def number_score(found: Tensor, values: Tensor) -> NumberScore:
    """Metrics of predicted numbers [n] for texts with the labels [n]."""
    error = (found.double() - values).square().mean().item()
    return NumberScore(len(values), pearson(found, values), spearman(found, values), error)


def task_score(logits: Tensor, label: Tensor) -> TaskScore:
    """Metrics of logits [n, classes] for images with the labels [n]."""
    correct = int((logits.argmax(1) == label).sum())
    return TaskScore(
        count=len(label),
        top1=correct / len(label),
        interval=interval(correct, len(label)),
        top5=top(logits, label, 5) if logits.shape[1] > 5 else None,
        loss=F.cross_entropy(logits, label).item(),
        calibration_error=calibration_error(logits, label),
    )


def _joint(
    logits: Sequence[Tensor], task: Tensor, label: Tensor, heads: Sequence[int], labels: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """Whether each joint prediction is correct, by protocol: whether the name of the predicted label is.

    If tasks share label names, the prediction of either head counts. logits: of every head, or of all of them.
    """
    names = [name for own in labels for name in own]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    column = torch.tensor([number[name] for name in names])
    offset = {index: sum(len(own) for own in labels[:position]) for position, index in enumerate(heads)}
    labelled = torch.tensor([int(t) in offset for t in task]) & (label >= 0)
    expected = column[torch.tensor([offset.get(int(t), 0) for t in task]) + label.clamp(min=0)]
    outputs = {"softmax": torch.cat([a.softmax(1) for a in logits], 1), "logits": torch.cat(list(logits), 1)}
    return {protocol: (column[values.argmax(1)] == expected)[labelled] for protocol, values in outputs.items()}
