"""Linear probes on the features of sources without a head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models import create_model
from torch import Tensor

from fsmerge_cli import merge
from fsmerge_cli.evaluation import probes as module
from fsmerge_cli.evaluation.probes import FOLDS, MAX_IMAGES, MIN_IMAGES, RIDGES, Probe, probe, probes_by_task
from tests.support.third_party import PIXELS, TINY, random_weights


def clusters(n: int, distance: float, d: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    label = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=random)
    return distance * centres[label] + torch.randn(n, d, generator=random), label


def by_hand(features: Tensor, label: Tensor) -> float:
    """The same probe with one solve for every left-out row instead of a formula, and normal equations."""
    n, right = len(label), 0
    x, y = features.double(), torch.nn.functional.one_hot(label).double()
    fold = torch.empty(n, dtype=torch.long)
    fold[label.argsort(stable=True)] = torch.arange(n) % FOLDS

    def fit(rows: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        mean, target = x[rows].mean(0), y[rows].mean(0)
        centred = x[rows] - mean
        W = torch.linalg.solve(
            centred.T @ centred + penalty * torch.eye(x.shape[1]).double(), centred.T @ (y[rows] - target)
        )
        return W, target - mean @ W

    for number in range(FOLDS):
        rows = (fold != number).nonzero().flatten()
        centred = x[rows] - x[rows].mean(0)
        scale = float(torch.linalg.svdvals(centred).square().mean())
        errors = []
        for ridge in RIDGES:
            error = 0.0
            for place, row in enumerate(rows):
                W, b = fit(torch.cat([rows[:place], rows[place + 1 :]]), ridge * scale)
                error += float((y[row] - x[row] @ W - b).square().sum())
            errors.append(error)
        W, b = fit(rows, RIDGES[errors.index(min(errors))] * scale)
        held = (fold == number).nonzero().flatten()
        right += int(((x[held] @ W + b).argmax(1) == label[held]).sum())
    return right / n


@pytest.mark.parametrize("distance", [0.0, 0.7, 1.5])
def test_it_is_cross_fitted_ridge_regression(distance: float) -> None:
    features, label = clusters(45, distance)
    found = probe(features, label)
    assert found is not None
    assert found.top1 == pytest.approx(by_hand(features, label))


def test_the_probe_of_a_rotated_scaled_and_shifted_copy_is_the_same() -> None:
    features, label = clusters(60, 1.0)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert probe(7 * features @ turn + 3, label) == probe(features, label)


def test_separate_clusters_are_told_apart_and_noise_is_not() -> None:
    assert probe(*clusters(60, 100.0)) == Probe(60, 3, 1.0)
    noise = torch.randn(600, 6, generator=torch.Generator().manual_seed(2))
    found = probe(noise, torch.arange(600) % 3)
    assert found is not None
    assert 0.25 < found.top1 < 0.42


def test_more_features_than_images_are_told_apart() -> None:
    features, label = clusters(40, 3.0, d=200)
    found = probe(features, label)
    assert found is not None
    assert found.top1 > 0.9


def test_what_has_no_probe() -> None:
    features, label = clusters(MIN_IMAGES, 1.0)
    assert probe(features, label) is not None
    assert probe(features[1:], label[1:]) is None
    assert probe(features, torch.zeros_like(label)) is None
    assert probe(torch.full_like(features, torch.nan), label) is None
    constant = probe(torch.zeros_like(features), label)
    assert constant is not None
    assert constant.top1 < 0.6


def test_of_many_images_some_are_taken_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    features, label = clusters(90, 100.0)
    order = label.argsort(stable=True)  # as in a folder, one class after the other
    monkeypatch.setattr(module, "MAX_IMAGES", 30)
    assert probe(features[order], label[order]) == Probe(30, 3, 1.0)
    assert MAX_IMAGES == 1000


def test_only_tasks_without_a_head_and_with_labels_have_a_probe() -> None:
    features, label = clusters(60, 100.0)
    task = torch.tensor([0] * 60 + [1] * 60 + [2] * 60)
    truth = torch.cat([label, label, torch.full_like(label, -1)])
    found = probes_by_task([torch.cat([features] * 3)] * 3, (task, truth), ["a", "b", "c"], [0])
    assert found == {"b": Probe(60, 3, 1.0)}
    assert probes_by_task([], (task, truth), ["a", "b", "c"], []) == {}


@pytest.mark.full
def test_a_merge_reports_the_probes_of_sources_without_heads(tmp_path: Path) -> None:
    names, random = ["x", "y"], torch.Generator().manual_seed(0)
    label = torch.arange(60) % 2
    images = 0.1 * torch.rand(60, 3, 8, 8, generator=random) + 0.9 * label[:, None, None, None]
    data = {f"s{i}": {"train": images[:20], "test": (images[20:], [names[c] for c in label[20:]])} for i in (1, 2)}
    sources = [
        {
            "name": f"s{seed}",
            "module": random_weights(create_model("vit_tiny_patch16_224", **TINY, num_classes=0), seed),
            "labels": names,
            **PIXELS,
        }
        for seed in (1, 2)
    ]
    result = merge(sources, method="average", data=data, output=tmp_path / "out")
    assert not [note for note in result.notes if "its head" in note]
    rows = result.evaluation()["rows"]
    assert rows["s1"]["probes"]["s1"]["top1"] == 1.0
    assert set(rows["merged"]["probes"]) == {"s1", "s2"}
    assert rows["merged"]["probes"]["s1"] == {"images": 40, "classes": 2, "top1": 1.0}
    card = (tmp_path / "out" / "merged" / "README.md").read_text().replace("\\", "")
    assert "a linear probe tells the classes of 100.0 % (mean over tasks) of the images" in card
    assert "on the sources' own features 100.0 %" in card
