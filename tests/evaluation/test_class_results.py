"""Results by class: counts, confusion matrices and reliability, compared with loops over the images."""

from __future__ import annotations

import pytest
import torch

from fsmerge_cli.evaluation.class_results import LARGEST, class_results, joint_confusion, reliability
from fsmerge_cli.evaluation.joint import Decision
from fsmerge_cli.evaluation.metrics import BINS, calibration_error
from fsmerge_cli.evaluation.predictions import Heads

HEADS = Heads(["a", "b"], [0, 1], [("x", "y", "z"), ("u", "v")])
TASK = torch.tensor([0, 0, 0, 0, 1, 1, 1])
LABEL = torch.tensor([0, 1, 2, -1, 0, 1, 1])


def logits(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(len(TASK), size, generator=random) for size in (3, 2)]


def test_counts_and_matrices_are_those_of_a_loop_over_the_labelled_images() -> None:
    merged, sources = logits(0), logits(1)
    found = class_results(merged, sources, (TASK, LABEL), HEADS)
    assert list(found) == ["a", "b"]
    for place, (name, own) in enumerate(found.items()):
        size = len(own["labels"])
        images, correct, right = [0] * size, [0] * size, [0] * size
        confusion = [[0] * size for _ in range(size)]
        for row, (task, label) in enumerate(zip(TASK.tolist(), LABEL.tolist())):
            if HEADS.tasks[task] == name and label >= 0:
                predicted = int(merged[place][row].argmax())
                images[label] += 1
                correct[label] += predicted == label
                right[label] += int(sources[place][row].argmax()) == label
                confusion[label][predicted] += 1
        assert own["labels"] == list(HEADS.labels[place])
        assert (own["images"], own["correct"], own["source_correct"]) == (images, correct, right)
        assert own["confusion"] == confusion
    alone = class_results(merged, None, (TASK, LABEL), HEADS)["a"]
    assert (alone["source_correct"], alone["source_reliability"]) == (None, None)


def test_the_joint_matrix_counts_the_most_probable_class_of_all_heads() -> None:
    merged = logits(2)
    found = joint_confusion(merged, (TASK, LABEL), HEADS)
    assert found is not None
    assert [(own["task"], own["label"]) for own in found["classes"]] == [
        *(("a", name) for name in "xyz"),
        *(("b", name) for name in "uv"),
    ]
    expected = [[0] * 5 for _ in range(5)]
    for row, (task, label) in enumerate(zip(TASK.tolist(), LABEL.tolist())):
        if label >= 0:
            shares = torch.cat([own[row].softmax(0) for own in merged])
            expected[label + 3 * task][int(shares.argmax())] += 1
    assert found["counts"] == expected
    shifted = joint_confusion(merged, (TASK, LABEL), HEADS, Decision((1.0, 1.0), (0.0, 50.0)))
    assert shifted is not None
    assert all(row[:3] == [0, 0, 0] for row in shifted["counts"])  # the second head always wins
    assert joint_confusion(merged[:1], (TASK, LABEL), Heads(["a"], [0], [("x", "y", "z")])) is None
    assert joint_confusion(merged, (TASK, torch.full_like(LABEL, -1)), HEADS) is None


def test_equal_label_names_of_two_tasks_are_different_classes_of_the_joint_matrix() -> None:
    alike = Heads(["a", "b"], [0, 1], [("x", "y", "z"), ("x", "y")])
    found, other = (
        joint_confusion(logits(2), (TASK, LABEL), alike),
        joint_confusion(logits(2), (TASK, LABEL), HEADS),
    )
    assert found is not None
    assert other is not None
    assert found["counts"] == other["counts"]
    assert found["classes"][3] == {"task": "b", "label": "x"}


@pytest.mark.parametrize(("size", "shown"), [(LARGEST, True), (LARGEST + 1, False)])
def test_more_than_30_classes_have_no_matrix(size: int, shown: bool) -> None:
    names = [str(i) for i in range(size)]
    heads = Heads(["a"], [0], [names])
    truth = torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 2, 3])
    found = class_results([torch.randn(4, size)], None, truth, heads)["a"]
    assert (found["confusion"] is not None) == shown
    assert len(found["images"]) == size


def test_the_gaps_of_the_bins_are_the_calibration_error() -> None:
    values = 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    label = torch.arange(500) % 4
    bins = reliability(values, label)
    assert len(bins) <= BINS
    assert sum(own["images"] for own in bins) == 500
    gap = sum(own["images"] * abs(own["confidence"] - own["accuracy"]) for own in bins) / 500
    assert gap == pytest.approx(calibration_error(values, label))
