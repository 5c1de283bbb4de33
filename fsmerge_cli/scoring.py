"""How good a model is on every task, alone and among the labels of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fsmerge_cli.data.base import ImageSet
from fsmerge_cli.data.reading import read
from fsmerge_cli.features import network
from fsmerge_cli.feeding import fits
from fsmerge_cli.progress import Event, Progress
from fsmerge_cli.sources import Head, Source

Forward = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]
"""Image batch -> the estimate of every source's features, and the logits of every head."""


@dataclass(frozen=True)
class TaskScore:
    """One task's test images: count, share of right answers among the task's own labels, mean loss (nats)."""

    count: int
    top1: float
    loss: float


@dataclass(frozen=True)
class Score:
    """One row of the table.

    tasks: by name. joint: share of right answers among the labels of all tasks, by protocol (`softmax`: each
    head's own softmax, then the largest probability; `logits`: the largest raw logit); empty for a source
    alone. feature_error: squared error of the estimated features relative to their variance, by task.
    """

    tasks: Mapping[str, TaskScore]
    joint: Mapping[str, float]
    feature_error: Mapping[str, float]

    @property
    def mean(self) -> float | None:
        """Mean top-1 over tasks; None without labels."""
        return sum(t.top1 for t in self.tasks.values()) / len(self.tasks) if self.tasks else None


@dataclass(frozen=True)
class Outputs:
    """What one model says about all test images: logits per head [n, classes], features per source [n, d_i]."""

    logits: list[Tensor]
    features: list[Tensor]


@dataclass(frozen=True)
class TestSet:
    """The test images of all tasks in one line: a loader per task, labels [n], task [n] and task names."""

    __test__ = False  # not a test class

    tasks: tuple[str, ...]
    sets: tuple[ImageSet | None, ...]
    workers: int
    batch: int

    def predict(self, forward: Forward, device: torch.device, progress: Progress, what: str) -> Outputs:
        """Run a model over every task's test images."""
        logits: list[list[Tensor]] = []
        features: list[list[Tensor]] = []
        total = sum(len(s) for s in self.sets if s)
        done = 0
        gpu = device.type == "cuda"
        with torch.inference_mode():
            for own in filter(None, self.sets):
                for pixels, _ in read(own, range(len(own)), self.batch, self.workers, pinned=gpu):
                    estimates, answers = forward(pixels.to(device, non_blocking=gpu))
                    features.append([f.float().cpu() for f in estimates])
                    logits.append([a.float().cpu() for a in answers])
                    done += len(pixels)
                    progress(Event(f"evaluate {what}", done, total))
        return Outputs(*([torch.cat(parts) for parts in zip(*rows)] for rows in (logits, features)))

    def truth(self) -> tuple[Tensor, Tensor]:
        """Task index [n] and class index [n] of every test image."""
        task = [torch.full((len(s),), i) for i, s in enumerate(self.sets) if s]
        classes = [s.classes or [s.read(j)[1] for j in range(len(s))] for s in self.sets if s]
        label = [torch.tensor(own, dtype=torch.long) for own in classes]
        empty = torch.empty(0, dtype=torch.long)
        return torch.cat([empty, *task]), torch.cat([empty, *label])


def merged_forward(
    backbone: Callable[[Tensor], Tensor], readouts: Sequence[Tensor], heads: Sequence[Head | None]
) -> Forward:
    """One backbone with a readout U_out and a folded head per task."""

    def forward(pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        z = backbone(pixels)
        return [z @ U.T for U in readouts], [head(z) for head in heads if head]

    return forward


def ensemble_forward(sources: Sequence[Source], device: torch.device) -> Forward:
    """All sources side by side: the upper bound that a merged model is measured against.

    Where they take more than a part of a GPU's memory (see `feeding`), each is moved for its turn and dropped.
    """
    size = sum(t.nbytes for s in sources for t in s.weights.values())
    networks = [network(source, device if fits(size, device) else "cpu") for source in sources]
    heads = [s.head.to(device) if s.head else None for s in sources]

    def turn(module: nn.Module, pixels: Tensor) -> Tensor:
        features: Tensor = functional_call(
            module, {n: t.to(device) for n, t in module.state_dict().items()}, pixels
        )
        return features

    def forward(pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        features = [turn(module, pixels) for module in networks]
        return features, [head(f) for head, f in zip(heads, features) if head]

    return forward


def score(
    outputs: Outputs,
    reference: Outputs,
    truth: tuple[Tensor, Tensor],
    tasks: Sequence[str],
    headed: Sequence[int],
    labels: Sequence[Sequence[str]],
) -> Score:
    """Compare a model's outputs with the labels and with the sources' features (`reference`).

    truth: task [n] and class [n]. headed: index of the task that each entry of `outputs.logits` belongs to,
    labels: its class names.
    """
    task, label = truth
    scores: dict[str, TaskScore] = {}
    for position, index in enumerate(headed):
        own = (task == index) & (label >= 0)
        if bool(own.any()):
            answers = outputs.logits[position][own]
            right = (answers.argmax(1) == label[own]).double().mean().item()
            scores[tasks[index]] = TaskScore(int(own.sum()), right, F.cross_entropy(answers, label[own]).item())
    joint = _joint(outputs.logits, task, label, headed, labels) if len(headed) > 1 and scores else {}
    errors = {}
    for index, name in enumerate(tasks):
        own = task == index
        if bool(own.any()):
            target = reference.features[index][own].double()
            spread = target.var(0, correction=0).mean().item() or 1.0
            error = (outputs.features[index][own].double() - target).square().mean().item()
            errors[name] = error / spread
    return Score(scores, joint, errors)


def _joint(
    logits: Sequence[Tensor], task: Tensor, label: Tensor, headed: Sequence[int], labels: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Accuracy among the labels of all tasks, by protocol; an answer is right when its label's name is.

    Tasks that share a label set have each label twice, and either head may give it.
    """
    names = [name for own in labels for name in own]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    column = torch.tensor([number[name] for name in names])
    offset = {index: sum(len(own) for own in labels[:position]) for position, index in enumerate(headed)}
    seen = torch.tensor([int(t) in offset for t in task]) & (label >= 0)
    want = column[torch.tensor([offset.get(int(t), 0) for t in task]) + label.clamp(min=0)]
    answers = {"softmax": torch.cat([a.softmax(1) for a in logits], 1), "logits": torch.cat(list(logits), 1)}
    return {
        protocol: (column[values.argmax(1)] == want)[seen].double().mean().item()
        for protocol, values in answers.items()
    }
