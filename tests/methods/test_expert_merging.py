from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.task_vectors.coefficients import number_variances
from fsmerge_cli.methods.task_vectors.expert_merging import ExpertMerging
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network
from tests.methods.test_task_vectors_folded import problem, trained
from tests.support.common_initialisation import assert_close, fitted, group, task_vectors

T, HIDDEN, REGULAR = 2.0, 0.7, 3.0
OPTIONS = {"temperature": T, "hidden": HIDDEN, "regularization": REGULAR, "task_weights": (3.0, 1.0)}


def states(weights: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Behind each of the three layers of the fixture, fp64."""
    found = [images.double().flatten(1)]
    for layer in range(3):
        found.append((found[-1] @ weights[f"fc{layer}.weight"].T + weights[f"fc{layer}.bias"]).relu())
    return found[1:]


def weights_at(given: Problem, c: Tensor) -> dict[str, Tensor]:
    assert given.base is not None
    vectors = task_vectors(given)
    return {
        n: given.base.weights[n].double() + sum(c[i, j] * v[n] for i, v in enumerate(vectors))
        for j, n in enumerate(vectors[0])
    }


def loss(given: Problem, c: Tensor, layers: str) -> float:
    """Of coefficients [k, tensors], image by image."""
    merged, total = weights_at(given, c), 3 * 2 * float((c - 0.1).abs().mean())
    for i, (source, weight) in enumerate(zip(given.sources, (1.5, 0.5))):
        own = {n: t.double() for n, t in source.weights.items()}
        head = source.head
        assert head is not None
        assert head.bias is not None
        W, b = head.weight.double(), head.bias.double()
        images = given.task_images(i)
        here, there = states(merged, images), states(own, images)
        for row in range(len(images)):
            p = ((W @ there[-1][row] + b) / T).softmax(0)
            q = ((W @ here[-1][row] + b) / T).softmax(0)
            differences = [float((x[row] - y[row]).square().mean()) for x, y in zip(here, there)]
            H = differences[1] if layers == "middle" else sum(differences) / 3
            total += weight * (float(-(p * q.log()).sum()) * T**2 + HIDDEN * H) / len(images)
    return total


@pytest.mark.parametrize("layers", ["middle", "all"])
@pytest.mark.parametrize("per", ["tensor", "task"])
def test_the_first_step_goes_down_the_loss_of_each_coefficient(per: str, layers: str) -> None:
    given = group(2, images=1)
    found = fitted(given, "expert_merging", steps=1, batch_size=2, per=per, lr=0.1, layers=layers, **OPTIONS)
    count = len(task_vectors(given)[0])
    raw = torch.full((2, count), 0.1, dtype=torch.float64).logit()
    stepped = raw.clone()
    for i in (0, 1):
        for own in [[j] for j in range(count)] if per == "tensor" else [list(range(count))]:
            above, below = raw.clone(), raw.clone()
            above[i, own] += 1e-4  # the distance from the start has no slope there
            below[i, own] -= 1e-4
            slope = loss(given, above.sigmoid(), layers) - loss(given, below.sigmoid(), layers)
            stepped[i, own] -= 0.1 * torch.tensor(slope).sign()
    assert_close(found.weights, weights_at(given, stepped.sigmoid()))


def test_many_steps_lower_the_loss_and_the_regularization_keeps_the_start() -> None:
    given = group(2, images=4)
    free = {**OPTIONS, "regularization": 0.0}
    found = fitted(given, "expert_merging", steps=60, per="task", lr=0.1, **free)
    c = torch.tensor([[found.facts[f"coefficient of t{i}"]] * 6 for i in (0, 1)], dtype=torch.float64)
    start = torch.full((2, 6), 0.1, dtype=torch.float64)
    assert loss(given, c, "middle") - REGULAR * 2 * float((c - 0.1).abs().mean()) < loss(given, start, "middle")
    held = fitted(given, "expert_merging", steps=60, per="task", lr=0.01, regularization=1e4)
    assert max(abs(c - 0.1) for c in held.facts.values()) < 0.01


def test_a_transformer_is_aligned_behind_its_first_block_of_two() -> None:
    given = problem(trained("class token"))
    found, other = (fitted(given, "expert_merging", steps=2, layers=own).weights for own in ("middle", "all"))
    assert found.keys() == given.sources[0].weights.keys()
    assert not torch.equal(found["blocks.1.mlp.fc1.weight"], other["blocks.1.mlp.fc1.weight"])


def test_predicted_numbers_count_relative_to_their_variance_over_all_images() -> None:
    """Not over those of a batch, which may be one image."""
    given = group(2, images=6)
    numbers = [as_number(source) for source in given.sources]
    given = replace(given, sources=numbers)
    found = number_variances(given)
    for i, source in enumerate(numbers):
        assert source.head is not None
        with torch.no_grad():
            values = source.head(network(source)(given.task_images(i))).double()
        assert found[i] == pytest.approx(float(values.var(correction=0)))
    assert number_variances(group(2)) == [1.0, 1.0]
    for name in ("expert_merging", "fw_merging"):
        solution = fitted(given, name, batch_size=1, steps=2)
        assert all(bool(t.isfinite().all()) for t in solution.weights.values())


def test_a_start_of_one_could_never_change() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        ExpertMerging(start=1.0)


def as_number(source: Source) -> Source:
    """The source with the first row of its head, which predicts a number."""
    assert source.head is not None
    weight, bias = source.head.weight[:1], source.head.bias[:1]
    return replace(source, head=replace(source.head, weight=weight, bias=bias, labels=None, regression=True))
