"""Which answers a model gives: among tasks, among the labels of one task, and on a few images to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.common.atomic import write_tensors
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.data.base import ImageSet

PAIRS = 10
"""How many confused pairs of labels are told per task."""

DIFFERENT, EXAMPLES = 4, 6
"""Examples per task: images that source and merged model answer differently at most, and all."""

Chosen = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Number of images by protocol, task of the image and task whose label was chosen."""


@dataclass(frozen=True)
class Answer:
    """A label of the image's own task and its share of that head's softmax."""

    label: str
    share: float


@dataclass(frozen=True)
class Example:
    """A test image of `task` with the answers of its source and of the merged model.

    pixels: [C, H, W], bytes. truth: the label, where it is known. elsewhere: task and label that the merged model
    prefers among those of all tasks (softmax per head), where they are another task's.
    """

    task: str
    pixels: Tensor
    truth: str | None
    source: Answer
    merged: Answer
    elsewhere: tuple[str, str] | None = None


@dataclass(frozen=True)
class Heads:
    """What the logits of several heads belong to: the tasks that have one (names, indices), and label names."""

    tasks: Sequence[str]
    index: Sequence[int]
    labels: Sequence[Sequence[str]]


def chosen_tasks(logits: Sequence[Tensor], task: Tensor, heads: Sequence[int], tasks: Sequence[str]) -> Chosen:
    """Whose label is chosen among those of all tasks; empty for fewer than two heads.

    logits: of each head [n, classes]. task [n]: index of the image's task. heads: index of each head's task.
    """
    if len(heads) < 2:
        return {}
    best = {"softmax": [a.softmax(1).amax(1) for a in logits], "logits": [a.amax(1) for a in logits]}
    found: dict[str, dict[str, dict[str, int]]] = {}
    for protocol, values in best.items():
        choice = torch.stack(values, 1).argmax(1)
        found[protocol] = {
            tasks[index]: {
                tasks[other]: int((choice[task == index] == place).sum()) for place, other in enumerate(heads)
            }
            for index in heads
            if bool((task == index).any())
        }
    return found


def compared(
    merged: Sequence[Tensor], sources: Sequence[Tensor], truth: tuple[Tensor, Tensor], heads: Heads
) -> dict[str, dict[str, Any]]:
    """By task: images, how many the merged model answers as the source does, and its most confused pairs."""
    task, label = truth
    found: dict[str, dict[str, Any]] = {}
    for place, index in enumerate(heads.index):
        own = task == index
        if not bool(own.any()):
            continue
        mine, theirs = (logits[place][own].argmax(1) for logits in (merged, sources))
        found[heads.tasks[place]] = {
            "images": int(own.sum()),
            "same_as_source": int((mine == theirs).sum()),
            "pairs": _pairs(mine, theirs, label[own], heads.labels[place]),
        }
    return found


def _pairs(mine: Tensor, theirs: Tensor, label: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    wrong = (label >= 0) & (mine != label)
    keys, counts = torch.unique(label[wrong] * len(names) + mine[wrong], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:PAIRS]  # equal counts in the order of the labels
    pairs = []
    for key, count in zip(keys[order].tolist(), counts[order].tolist()):
        true, answer = divmod(key, len(names))
        same = int(((label == true) & (theirs == answer)).sum())
        pairs.append({"label": names[true], "answer": names[answer], "count": count, "source": same})
    return pairs


def examples(
    sets: Sequence[ImageSet | None],
    merged: Sequence[Tensor],
    sources: Sequence[Tensor],
    truth: tuple[Tensor, Tensor],
    heads: Heads,
    seed: int,
) -> tuple[Example, ...]:
    """Images of every task in a seeded order, those that are answered differently first.

    truth: task and class of the test images of all `sets`, in their order; the logits too.
    """
    task, label = truth
    found = []
    for place, index in enumerate(heads.index):
        own = sets[index]
        rows = (task == index).nonzero().flatten()
        if own is None or not len(rows):
            continue
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "examples", heads.tasks[place]))]
        same = merged[place][rows].argmax(1) == sources[place][rows].argmax(1)
        picked = rows[~same][:DIFFERENT].tolist()
        picked += rows[same][: EXAMPLES - len(picked)].tolist()
        picked += rows[~same][DIFFERENT : DIFFERENT + EXAMPLES - len(picked)].tolist()
        start = int((task < index).sum())
        for row in picked:
            names = heads.labels[place]
            true = int(label[row])
            found.append(
                Example(
                    heads.tasks[place],
                    (own[row - start][0].clamp(0, 1) * 255).round().to(torch.uint8),
                    names[true] if true >= 0 else None,
                    _answer(sources[place][row], names),
                    _answer(merged[place][row], names),
                    _elsewhere([logits[row] for logits in merged], place, heads),
                )
            )
    return tuple(found)


def _answer(logits: Tensor, names: Sequence[str]) -> Answer:
    share, best = logits.softmax(0).max(0)
    return Answer(names[int(best)], share.item())


def _elsewhere(logits: Sequence[Tensor], own: int, heads: Heads) -> tuple[str, str] | None:
    answers = [_answer(a, names) for a, names in zip(logits, heads.labels)]
    best = max(range(len(answers)), key=lambda place: answers[place].share)
    return (heads.tasks[best], answers[best].label) if best != own else None


CORRECT = "correct.safetensors"


def write_correct(folder: Path, right: Mapping[str, Tensor]) -> None:
    """Write which test images were answered right, so that runs can be compared image by image."""
    write_tensors(folder / CORRECT, {name: tensor.to(torch.uint8) for name, tensor in right.items()})
