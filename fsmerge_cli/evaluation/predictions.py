"""Predictions of a model: the predicted task, confused labels, and a few example images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fsmerge_cli.common.atomic import write_tensors
from fsmerge_cli.common.errors import first_line
from fsmerge_cli.common.foreign_files import UnreadableError
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.common.shown import shown
from fsmerge_cli.data.base import ImageSet
from fsmerge_cli.data.text.words import Words

PAIRS = 10
"""Number of confused label pairs that are listed per task."""

DIFFERENT, EXAMPLES = 4, 6
"""Examples per task: at most, with different predictions of source and merged model; and in total."""

ChosenTasks = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Number of images by protocol, task of the image and task whose label is predicted."""


@dataclass(frozen=True)
class Prediction:
    """A predicted label of the image's own task and its softmax probability."""

    label: str
    confidence: float


@dataclass(frozen=True)
class Example:
    """A test image of `task` with the predictions of its source and of the merged model.

    pixels: [C, H, W], uint8; None for a text. text: the text; None for an image. truth: the label, if known.
    other_task: task and label of the merged model's joint prediction (over all tasks, softmax per head), if it is
    a label of another task.
    """

    task: str
    pixels: Tensor | None
    truth: str | None
    source: Prediction
    merged: Prediction
    other_task: tuple[str, str] | None = None
    text: str | None = None


@dataclass(frozen=True)
class Heads:
    """The tasks that have a head: their names, their indices among all tasks, and their label names."""

    tasks: Sequence[str]
    index: Sequence[int]
    labels: Sequence[Sequence[str]]


def chosen_tasks(
    logits: Sequence[Tensor], task: Tensor, heads: Sequence[int], tasks: Sequence[str]
) -> ChosenTasks:
    """The task whose label is predicted among those of all tasks; empty for fewer than two heads.

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


def agreement(
    logits: Sequence[Tensor], sources: Sequence[Tensor], task: Tensor, heads: Heads
) -> dict[str, tuple[int, int]]:
    """By task: number of images, and of those on which model and source predict the same label of the task."""
    found = {}
    for name, index, mine, other in zip(heads.tasks, heads.index, logits, sources):
        own = task == index
        if bool(own.any()):
            same = mine[own].argmax(1) == other[own].argmax(1)
            found[name] = (int(own.sum()), int(same.sum()))
    return found


def predictions_by_task(
    merged: Sequence[Tensor],
    sources: Sequence[Tensor],
    truth: tuple[Tensor, Tensor],
    heads: Heads,
    agreed: Mapping[str, tuple[int, int]],
) -> dict[str, dict[str, Any]]:
    """By task: number of images, of equal predictions of merged model and source, and the most confused pairs.

    agreed: their `agreement`, as in the merged model's `Score`.
    """
    task, label = truth
    found: dict[str, dict[str, Any]] = {}
    for place, (name, index) in enumerate(zip(heads.tasks, heads.index)):
        if name in agreed:
            own = task == index
            predicted, expected = (logits[place][own].argmax(1) for logits in (merged, sources))
            pairs = _pairs(predicted, expected, label[own], heads.labels[place])
            images, same = agreed[name]
            found[name] = {"images": images, "same_as_source": same, "pairs": pairs}
    return found


def _pairs(predicted: Tensor, source: Tensor, label: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    wrong = (label >= 0) & (predicted != label)
    keys, counts = torch.unique(label[wrong] * len(names) + predicted[wrong], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:PAIRS]  # ties in label order
    pairs = []
    for key, count in zip(keys[order].tolist(), counts[order].tolist()):
        true, prediction = divmod(key, len(names))
        same = int(((label == true) & (source == prediction)).sum())
        pairs.append({"label": names[true], "prediction": names[prediction], "count": count, "source": same})
    return pairs


def examples(
    sets: Sequence[ImageSet | None],
    merged: Sequence[Tensor],
    sources: Sequence[Tensor],
    truth: tuple[Tensor, Tensor],
    heads: Heads,
    seed: int,
) -> tuple[Example, ...]:
    """Example images of every task in a seeded order, those with different predictions first.

    truth: task and class of the test images of all `sets`, in their order. merged, sources: their logits.
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
        owners = None if own.tags is None else [item for item in range(len(own)) for _ in own.labels(item)]
        for row in picked:
            names = heads.labels[place]
            true = int(label[row])
            if owners is None:
                pixels, text = shown_item(own, row - start)
            else:
                pixels, text = None, shown_word(own, owners, row - start)
            found.append(
                Example(
                    heads.tasks[place],
                    pixels,
                    names[true] if true >= 0 else None,
                    _prediction(sources[place][row], names),
                    _prediction(merged[place][row], names),
                    _other_task([logits[row] for logits in merged], place, heads),
                    text,
                )
            )
    return tuple(found)


def shown_item(items: ImageSet, row: int) -> tuple[Tensor | None, str | None]:
    """What a person sees of an item: uint8 pixels [C, H, W], or a text (the two parts of a pair on two lines)."""
    raw = items.read(row)[0]
    if isinstance(raw, str | tuple | Words):
        return None, "\n".join(raw) if isinstance(raw, tuple) else str(raw)
    pixels: Tensor = (items[row][0].clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels, None


def shown_word(items: ImageSet, owners: Sequence[int], row: int) -> str:
    """A word that is read, and its text below. owners: of every row of features, its item."""
    item: Any = items.read(owners[row])[0]
    read: Any = items.transform
    numbers = read.word_numbers(item)
    words = Words.of(item)
    return f"{words.words[numbers[row - owners.index(owners[row])]]}\n{words}"


def _prediction(logits: Tensor, names: Sequence[str]) -> Prediction:
    confidence, best = logits.softmax(0).max(0)
    return Prediction(names[int(best)], confidence.item())


def _other_task(logits: Sequence[Tensor], own: int, heads: Heads) -> tuple[str, str] | None:
    predictions = [_prediction(a, names) for a, names in zip(logits, heads.labels)]
    best = max(range(len(predictions)), key=lambda place: predictions[place].confidence)
    return (heads.tasks[best], predictions[best].label) if best != own else None


CORRECT = "correct.safetensors"


def write_correct(folder: Path, correct: Mapping[str, Tensor]) -> None:
    """Write which test images are predicted correctly, so that runs can be compared image by image."""
    write_tensors(folder / CORRECT, {name: tensor.to(torch.uint8) for name, tensor in correct.items()})


def read_correct(folder: Path, row: Mapping[str, Any], advice: str) -> dict[str, Tensor]:
    """The tensors of `write_correct` in a run's folder; empty where it has none.

    row: the scores in evaluation.json, which they have to add up to. Raises UnreadableError; advice: its last
    sentence.
    """
    file = folder / CORRECT
    if not file.is_file():
        return {}
    try:
        found = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise UnreadableError(file, first_line(error), advice) from None
    stated = {f"task.{name}": (own["count"], own["top1"]) for name, own in row["tasks"].items()}
    images = sum(count for count, _ in stated.values())
    stated |= {f"joint.{name}": (images, share) for name, share in row["joint_top1"].items()}
    for name in sorted({*stated, *found}):
        if name not in found or name not in stated or not _adds_up(found[name], *stated[name]):
            raise UnreadableError(
                file, f"'{shown(name)}' in it is not what the evaluation.json beside it states", advice
            )
    return found


def _adds_up(correct: Tensor, count: int, share: float | None) -> bool:
    if correct.shape != (count,) or correct.dtype != torch.uint8 or share is None or bool((correct > 1).any()):
        return False
    return math.isclose(float(correct.double().mean()), share, abs_tol=1e-6)
