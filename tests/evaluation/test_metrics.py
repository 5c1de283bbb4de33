"""Metrics compared with libraries, or with another definition of them."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from fsmerge_cli.evaluation.metrics import (
    FeatureSimilarity,
    calibration_error,
    interval,
    matched_temperatures,
    temperatures,
    top,
)


def predictions(n: int = 400, classes: int = 7, sharp: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    label = torch.randint(classes, (n,), generator=random)
    logits = torch.randn(n, classes, generator=random)
    logits[torch.arange(n), label] += 1.0
    return sharp * logits, label


def test_top_k_accuracy_and_calibration_error_equal_those_of_libraries() -> None:
    logits, label = predictions()
    for k in (1, 5):
        expected = top_k_accuracy_score(label.numpy(), logits.numpy(), k=k)
        assert top(logits, label, k) == pytest.approx(expected)
    expected = multiclass_calibration_error(logits.softmax(1), label, num_classes=7, n_bins=15, norm="l1")
    assert calibration_error(logits, label) == pytest.approx(expected.item(), abs=1e-6)
    loss = torch.nn.functional.cross_entropy(logits, label).item()
    assert loss == pytest.approx(log_loss(label.numpy(), logits.double().softmax(1).numpy()), rel=1e-6)


def test_an_overconfident_model_has_a_larger_calibration_error() -> None:
    assert calibration_error(*predictions(sharp=8.0)) > calibration_error(*predictions(sharp=1.0)) + 0.1


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (37, 50), (540, 540)])
def test_the_interval_solves_wilsons_equation(correct: int, count: int) -> None:
    z, share = 1.959963984540054, correct / count
    for bound in interval(correct, count):
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / count, abs=1e-12)
    expected = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_temperatures_recover_the_scale_of_the_logits() -> None:
    random = torch.Generator().manual_seed(1)
    task = torch.randint(2, (600,), generator=random)
    heads = []
    for i in range(2):  # on images of its task a head is more confident
        logits = torch.randn(600, 5, generator=random)
        logits[task == i, 0] += 3.0
        heads.append(logits)
    unequal = [heads[0], 6.0 * heads[1]]

    def accuracy(logits: list[torch.Tensor], at: list[float]) -> float:
        largest = torch.stack([(a / t).softmax(1).max(1).values for a, t in zip(logits, at)], 1)
        return (largest.argmax(1) == task).double().mean().item()

    found = temperatures(unequal, task)
    assert found[1] / found[0] == pytest.approx(6.0, rel=0.25)
    assert accuracy(unequal, found) > accuracy(unequal, [1.0, 1.0]) + 0.05
    assert accuracy(unequal, found) == pytest.approx(accuracy(heads, temperatures(heads, task)), abs=0.02)


def test_temperatures_are_one_without_images() -> None:
    logits, _ = predictions()
    assert temperatures([logits], torch.zeros(400, dtype=torch.long)) == [1.0]
    assert temperatures([logits[:0], logits[:0]], torch.empty(0, dtype=torch.long)) == [1.0, 1.0]
    assert temperatures([logits, logits], torch.zeros(400, dtype=torch.long))[1] == 1.0


def test_a_matched_temperature_makes_a_head_as_confident_as_its_source() -> None:
    logits, _ = predictions()
    assert matched_temperatures([3.0 * logits, 0.5 * logits], [logits, logits]) == pytest.approx(
        [3.0, 0.5], rel=1e-3
    )
    assert matched_temperatures([logits[:0]], [logits[:0]]) == [1.0]
    constant = torch.zeros_like(logits)  # no temperature changes it
    assert matched_temperatures([constant], [logits]) == pytest.approx([1.0], abs=1e-3)
    other = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    share = logits.softmax(1)
    grid = torch.linspace(-1, 1, 401).exp().tolist()
    divergence = [(share * (share.log() - (other / t).log_softmax(1))).sum(1).mean().item() for t in grid]
    assert matched_temperatures([other], [logits]) == pytest.approx(
        [grid[divergence.index(min(divergence))]], rel=0.01
    )
    assert matched_temperatures([other], [logits])[0] > 1.1  # noise makes the head overconfident


def test_similarity_from_running_sums_equals_its_definition_on_all_rows() -> None:
    random = torch.Generator().manual_seed(2)
    x, y = torch.randn(90, 5, generator=random), torch.randn(90, 5, generator=random)
    y = y + x
    similarity = FeatureSimilarity()
    for part in range(0, 90, 40):
        similarity.add(x[part : part + 40], y[part : part + 40])
    found = similarity.values()
    center = torch.eye(90, dtype=torch.double) - 1 / 90
    gram = [center @ (m.double() @ m.double().T) @ center for m in (x, y)]
    hsic = [(a * b).sum() for a, b in ((gram[0], gram[1]), (gram[0], gram[0]), (gram[1], gram[1]))]
    assert found["cka"] == pytest.approx((hsic[0] / (hsic[1] * hsic[2]).sqrt()).item())
    assert found["cosine"] == pytest.approx(torch.nn.functional.cosine_similarity(x, y).mean().item(), rel=1e-5)
    variance = (y - y.mean(0)).square().sum()
    assert found["error"] == pytest.approx(((x - y).square().sum() / variance).item(), rel=1e-5)


def test_cka_is_invariant_to_rotation_and_to_added_zero_units() -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=random)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=random))
    rotated, wide = FeatureSimilarity(), FeatureSimilarity()
    rotated.add(x, 3 * x @ rotation)
    wide.add(x, torch.cat([x @ rotation, torch.zeros(50, 2)], 1))
    assert rotated.values()["cka"] == pytest.approx(1.0)
    assert wide.values() == {"cka": pytest.approx(1.0), "cosine": None, "error": None}
    assert FeatureSimilarity().values() == {"cka": None, "cosine": None, "error": None}
