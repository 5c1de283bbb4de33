from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fsmerge_cli.methods import Problem
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
