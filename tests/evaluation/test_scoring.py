"""Scores of small cases that are computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fsmerge_cli.evaluation import forward
from fsmerge_cli.evaluation.forward import Outputs, ensemble_forward
from fsmerge_cli.evaluation.metrics import interval
from fsmerge_cli.evaluation.scoring import score
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source


def test_scores_equal_those_computed_by_hand() -> None:
    # Two tasks with two and three classes; four images. Logits per head for all images.
    head_a = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0], [0.0, 0.0]])
    head_b = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [4.0, 0.0, 0.0]])
    task, label = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0])
    features = [torch.tensor([[0.0], [2.0], [0.0], [0.0]]), torch.tensor([[0.0], [0.0], [1.0], [3.0]])]
    estimates = [features[0] + 1.0, features[1]]
    found = score(
        Outputs([head_a, head_b], estimates),
        Outputs([], features),
        (task, label),
        ("a", "b"),
        [0, 1],
        [("0", "1"), ("2", "3", "4")],
    )
    assert (found.tasks["a"].top1, found.tasks["b"].top1) == (0.5, 1.0)
    assert found.tasks["a"].count == 2
    loss = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(1.0))) / 2
    assert found.tasks["a"].loss == pytest.approx(loss)
    assert found.mean == 0.75
    # Raw logits: image 0 goes to b's third class (9 > 2); the others: wrong class, a's first (5 > 3), correct.
    assert found.joint["logits"] == 0.25
    # Softmax per head: 0 -> b (0.9998 > 0.88), 1 -> a's second class, 2 -> a (0.993 > 0.91), 3 -> b's first.
    assert found.joint["softmax"] == 0.25
    errors = {name: values["error"] for name, values in found.features.items()}
    assert errors == {"a": pytest.approx(1.0), "b": 0.0}
    assert found.tasks["a"].interval == interval(1, 2)
    assert found.tasks["a"].top5 is None
    assert found.temperatures == {}


def test_tasks_without_a_classifier_head_have_only_feature_metrics() -> None:
    features = [torch.randn(4, 3), torch.randn(4, 3)]
    task = torch.tensor([0, 0, 1, 1])
    found = score(
        Outputs([torch.eye(4, 2)], features),
        Outputs([], features),
        (task, task.clone()),
        ("a", "b"),
        [1],
        [("x", "y")],
    )
    assert found.tasks.keys() == {"b"}
    assert found.joint == {}
    assert {name: values["error"] for name, values in found.features.items()} == {"a": 0.0, "b": 0.0}


def test_temperatures_change_only_the_joint_predictions() -> None:
    head_a, head_b = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[6.0, 0.0], [9.0, 0.0]])
    truth = torch.tensor([0, 1]), torch.tensor([0, 0])
    features = [torch.zeros(2, 1)] * 2
    outputs = Outputs([head_a, head_b], features)
    labels = [("0", "1"), ("2", "3")]
    found = score(outputs, Outputs([], features), truth, ("a", "b"), [0, 1], labels, [1.0, 5.0])
    assert found.joint == {
        "softmax": 0.5,
        "logits": 0.5,
        "softmax_calibrated": 1.0,  # image 0: b's first class falls from 0.998 to 0.77, below a's 0.88
        "logits_calibrated": 1.0,
    }
    assert found.temperatures == {"a": 1.0, "b": 5.0}
    plain = score(outputs, Outputs([], features), truth, ("a", "b"), [0, 1], labels)
    assert found.tasks == plain.tasks


def test_predictions_of_either_head_count_for_tasks_that_share_labels() -> None:
    correct = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    wrong = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    truth = torch.tensor([0, 1]), torch.tensor([0, 1])
    features = [torch.zeros(2, 1)] * 2
    outputs = Outputs([correct, wrong], features)
    shared = score(outputs, Outputs([], features), truth, ("a", "b"), [0, 1], [("cat", "dog"), ("cat", "dog")])
    distinct = score(outputs, Outputs([], features), truth, ("a", "b"), [0, 1], [("cat", "dog"), ("ant", "bee")])
    assert shared.joint == {"softmax": 1.0, "logits": 1.0}
    assert distinct.joint == {"softmax": 0.5, "logits": 0.5}


@pytest.mark.parametrize("together", [True, False])
def test_the_ensemble_runs_every_source_with_its_head(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "fits", lambda size, device: together)
    sources = [mlp_source("a", [8], 1, norm="batch"), mlp_source("b", [6], 2, classes=None)]
    pixels = torch.rand(5, 1, 4, 4)
    features, logits = ensemble_forward(sources, torch.device("cpu"))(pixels)
    for found, source in zip(features, sources):
        assert torch.equal(found, network(source)(pixels))
    assert len(logits) == 1
    assert torch.equal(logits[0], sources[0].head(features[0]))
