"""The joint decision is the best on the given images, and one linear layer makes it."""

from __future__ import annotations

import pytest
import torch

from fsmerge_cli.evaluation.joint import best_decision, expected_labels, fitted, plain, with_decision
from fsmerge_cli.models.head import Head, joint_classifier

RANDOM = torch.Generator().manual_seed(0)


def two_heads(count: int = 60) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Logits of two heads, the second ten times as large; the head of each image and its label."""
    place = torch.arange(count) % 2
    label = torch.randint(0, 3, (count,), generator=RANDOM)
    logits = [torch.randn(count, 3, generator=RANDOM) for _ in range(2)]
    for i in range(count):
        logits[int(place[i])][i, label[i]] += 6
    return [logits[0], 10 * logits[1] + 4], place, 3 * place + label


def test_the_fit_is_better_than_raw_logits_and_given_temperatures() -> None:
    logits, _, target = two_heads()
    right = {
        name: float((own.logits(logits).argmax(1) == target).float().mean())
        for name, own in {"raw": plain(2), "fitted": fitted(logits, target)}.items()
    }
    assert right["fitted"] > 0.95 > right["raw"] + 0.05
    chosen = best_decision(logits, target, [1.0, 1.0])
    assert (chosen.logits(logits).argmax(1) == target).float().mean() == right["fitted"]


@pytest.mark.full
def test_a_fit_is_not_chosen_for_the_images_that_it_was_made_from() -> None:
    """Raw logits of two equal heads are best; a fit to 24 images often looks better on them."""
    random = torch.Generator().manual_seed(3)
    rejected = looks_better = 0
    for _ in range(40):
        label = torch.randint(0, 6, (24,), generator=random)
        both = torch.randn(24, 6, generator=random)
        both[torch.arange(24), label] += 3
        logits = [both[:, :3], both[:, 3:]]
        fit = fitted([own.double() for own in logits], label)
        right = [int((own.logits(logits).argmax(1) == label).sum()) for own in (fit, plain(2))]
        looks_better += right[0] > right[1]
        rejected += best_decision(logits, label, []) != plain(2)
    assert looks_better > 10
    assert rejected <= 5


def test_of_equally_good_decisions_the_simplest_is_taken() -> None:
    logits = [torch.tensor([[5.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [5.0, 0.0]])]
    assert best_decision(logits, torch.tensor([0, 2]), [2.0, 2.0]) == plain(2)
    assert best_decision(logits[:1], torch.tensor([0, 1]), [1.0]) == plain(1)
    assert best_decision(logits, torch.empty(0, dtype=torch.long), []) == plain(2)


def test_the_expected_label_is_that_of_the_source() -> None:
    reference = [torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 9.0], [9.0, 0.0]])]
    assert expected_labels(reference, torch.tensor([0, 1])).tolist() == [0, 2]
    assert expected_labels(reference, None).tolist() == [3, 2]


def test_one_linear_layer_makes_the_decision() -> None:
    heads = {name: Head(torch.randn(3, 4, generator=RANDOM), None, ("x", "y", "z")) for name in "ab"}
    features = torch.randn(20, 4, generator=RANDOM)
    logits = [head(features) for head in heads.values()]
    decision = fitted(logits, torch.randint(0, 6, (20,), generator=RANDOM))
    linear = joint_classifier(with_decision(heads, decision))
    assert linear is not None
    torch.testing.assert_close(features @ linear[0].T + linear[1], decision.logits(logits))
    normalised = {name: Head(head.weight, None, head.labels, normalize=True) for name, head in heads.items()}
    assert joint_classifier(normalised) is None
