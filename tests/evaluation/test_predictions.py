"""Predicted tasks, confused labels and example images, compared with their definitions."""

from __future__ import annotations

import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import Tensor

from fsmerge_cli.data.base import ImageSet
from fsmerge_cli.evaluation.predictions import (
    DIFFERENT,
    EXAMPLES,
    PAIRS,
    Heads,
    agreement,
    chosen_tasks,
    examples,
    predictions_by_task,
)

TASKS = ("a", "b", "no head")
HEADS = Heads(("a", "b"), (0, 1), (tuple("012345"), tuple("xyz")))


def outputs(seed: int, n: int = 90) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    logits = [3 * torch.randn(n, len(names), generator=random) for names in HEADS.labels]
    task = torch.arange(3).repeat_interleave(n // 3)
    label = torch.cat([torch.randint(0, 6, (n // 3,)), torch.randint(0, 3, (n // 3,)), -torch.ones(n // 3).long()])
    return logits, (task, label)


def test_predicted_tasks_equal_those_of_one_image_at_a_time() -> None:
    logits, (task, _) = outputs(0)
    found = chosen_tasks(logits, task, HEADS.index, TASKS)
    expected = {p: {a: dict.fromkeys("ab", 0) for a in "ab"} for p in ("softmax", "logits")}
    for i in range(60):
        for protocol in expected:
            rows = [values[i].softmax(0) if protocol == "softmax" else values[i] for values in logits]
            best = int(torch.cat(rows).argmax())
            expected[protocol][TASKS[task[i]]]["a" if best < 6 else "b"] += 1
    assert found == expected
    assert chosen_tasks(logits[:1], task, [0], TASKS) == {}


def test_confused_pairs_are_the_largest_off_diagonal_entries_of_sklearns_confusion_matrix() -> None:
    merged, truth = outputs(1)
    sources, _ = outputs(2)
    truth[1][:3] = -1  # without a label
    found = predictions_by_task(merged, sources, truth, HEADS, agreement(merged, sources, truth[0], HEADS))
    assert list(found) == ["a", "b"]
    for place, name in enumerate("ab"):
        own = truth[0] == place
        predicted, expected = merged[place][own].argmax(1), sources[place][own].argmax(1)
        assert found[name]["images"] == 30
        assert found[name]["same_as_source"] == sum(x == y for x, y in zip(predicted.tolist(), expected.tolist()))
        names, known = HEADS.labels[place], truth[1][own] >= 0
        matrix, source = (
            confusion_matrix(truth[1][own][known], labels[known], labels=range(len(names)))
            for labels in (predicted, expected)
        )
        wrong = [
            {"label": names[i], "prediction": names[j], "count": int(matrix[i, j]), "source": int(source[i, j])}
            for i in range(len(names))
            for j in range(len(names))
            if i != j and matrix[i, j]
        ]
        assert found[name]["pairs"] == sorted(wrong, key=lambda pair: -int(str(pair["count"])))[:PAIRS]


def picture_set(n: int, shade: int) -> ImageSet:
    def read(i: int) -> tuple[Image.Image, int]:
        return Image.new("L", (2, 2), shade + i), 0

    return ImageSet(n, read, lambda image: torch.full((1, 2, 2), image.getpixel((0, 0)) / 255), True)


def test_examples_have_the_pixels_labels_and_predictions_of_their_images() -> None:
    merged, truth = outputs(3)
    sources = [values.clone() for values in merged]
    sources[0][:10] = -sources[0][:10]  # other predictions for ten images of the first task
    sets = [picture_set(30, 0), picture_set(30, 50), None]
    found = examples(sets, merged, sources, (truth[0], truth[1]), HEADS, seed=0)
    assert [e.task for e in found] == ["a"] * EXAMPLES + ["b"] * EXAMPLES
    assert [e.source.label != e.merged.label for e in found] == [True] * DIFFERENT + [False] * 8
    for e in found:
        place = "ab".index(e.task)
        row = int(e.pixels[0, 0, 0]) - 50 * place + 30 * place
        names = HEADS.labels[place]
        assert e.truth == names[truth[1][row]]
        assert e.merged.label == names[int(merged[place][row].argmax())]
        assert e.source.confidence == sources[place][row].softmax(0).max().item()
        other = 1 - place
        other_wins = merged[other][row].softmax(0).max() > merged[place][row].softmax(0).max()
        assert (e.other_task is not None) == bool(other_wins)
    assert examples(sets, merged, sources, truth, HEADS, seed=0)[0].truth == found[0].truth
    every = examples(sets, merged, [-values for values in merged], truth, HEADS, seed=0)
    assert len(every) == 2 * EXAMPLES  # all predictions differ


def test_unlabelled_images_have_predictions_and_no_ground_truth() -> None:
    merged, (task, label) = outputs(4)
    truth = task, torch.full_like(label, -1)
    agreed = agreement(merged, merged, task, HEADS)
    assert all(own["pairs"] == [] for own in predictions_by_task(merged, merged, truth, HEADS, agreed).values())
    found = examples([picture_set(30, 0), None, None], merged, merged, truth, HEADS, seed=1)
    assert [e.truth for e in found] == [None] * EXAMPLES
