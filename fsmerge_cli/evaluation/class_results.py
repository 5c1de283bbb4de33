"""Results class by class: accuracy, confusion matrices, and how well confidence and accuracy agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.evaluation.joint import Decision
from fsmerge_cli.evaluation.metrics import calibration_bins
from fsmerge_cli.evaluation.predictions import Heads

LARGEST = 30
"""Most classes of a confusion matrix."""


def class_results(
    merged: Sequence[Tensor], sources: Sequence[Tensor] | None, truth: tuple[Tensor, Tensor], heads: Heads
) -> dict[str, dict[str, Any]]:
    """By task with labelled test images: counts by class, the confusion matrix and the bins of the reliability.

    merged, sources: logits of every head on all test images [n, classes] (None: the sources are not known).
    truth: task and class of every test image, both [n].
    """
    task, label = truth
    found: dict[str, dict[str, Any]] = {}
    for place, index in enumerate(heads.index):
        own = (task == index) & (label >= 0)
        names = list(heads.labels[place])
        logits = merged[place][own]
        if not bool(own.any()) or logits.shape[1] != len(names):
            continue
        true, predicted = label[own], logits.argmax(1)
        reference = None if sources is None else sources[place][own]
        few = len(names) <= LARGEST
        found[heads.tasks[place]] = {
            "labels": names,
            "images": counts(true, len(names)),
            "correct": counts(true[predicted == true], len(names)),
            "source_correct": None if reference is None else counts(true[reference.argmax(1) == true], len(names)),
            "confusion": matrix(true, predicted, len(names)) if few else None,
            "reliability": reliability(logits, true),
            "source_reliability": None if reference is None else reliability(reference, true),
        }
    return found


def joint_confusion(
    merged: Sequence[Tensor], truth: tuple[Tensor, Tensor], heads: Heads, decision: Decision | None = None
) -> dict[str, Any] | None:
    """The confusion matrix over the classes of all heads (the task is not given).

    decision: of the written classifier (None: the largest probability, softmax per head).
    None for one head, more than LARGEST classes, or no labelled image.
    """
    task, label = truth
    names = [(name, own) for name, labels in zip(heads.tasks, heads.labels) for own in labels]
    sizes = [len(own) for own in heads.labels]
    if len(sizes) < 2 or len(names) > LARGEST or [own.shape[1] for own in merged] != sizes:
        return None
    offset = {index: sum(sizes[:place]) for place, index in enumerate(heads.index)}
    labelled = torch.tensor([int(t) in offset for t in task], dtype=torch.bool) & (label >= 0)
    if not bool(labelled.any()):
        return None
    true = torch.tensor([offset[int(t)] for t in task[labelled]]) + label[labelled]
    logits = [own[labelled] for own in merged]
    values = torch.cat([own.softmax(1) for own in logits], 1) if decision is None else decision.logits(logits)
    predicted = values.argmax(1)
    classes = [{"task": name, "label": own} for name, own in names]
    return {"classes": classes, "counts": matrix(true, predicted, len(names))}


def counts(values: Tensor, size: int) -> list[int]:
    """How often each of the numbers below `size` occurs."""
    return list(torch.bincount(values, minlength=size).tolist())


def matrix(true: Tensor, predicted: Tensor, size: int) -> list[list[int]]:
    """Numbers of images by true class (rows) and predicted class (columns)."""
    found: list[list[int]] = (
        torch.bincount(true * size + predicted, minlength=size * size).view(size, size).tolist()
    )
    return found


def reliability(logits: Tensor, label: Tensor) -> list[Mapping[str, float]]:
    """The bins of the expected calibration error that hold images: mean confidence, accuracy and number of images.

    logits [n, classes], label [n].
    """
    number, confidence, correct = calibration_bins(logits, label)
    return [
        {"images": n, "confidence": confidence[i].item() / n, "accuracy": correct[i].item() / n}
        for i, n in enumerate(number.tolist())
        if n
    ]
