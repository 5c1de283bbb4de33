from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods import Problem
from fsmerge_cli.training.teachers import network
from tests.support.common_initialisation import assert_close, fitted, group, task_vectors


def total_entropy(given: Problem, coefficients: Tensor) -> float:
    """In fp64, of all images of every task; coefficients: [k, tensors]."""
    assert given.base is not None
    vectors = task_vectors(given)
    weights = {
        n: given.base.weights[n].double() + sum(coefficients[i, j] * v[n] for i, v in enumerate(vectors))
        for j, n in enumerate(vectors[0])
    }
    module = network(given.base).double()
    module.load_state_dict({n: torch.as_tensor(t) for n, t in weights.items()})
    found = 0.0
    for i, source in enumerate(given.sources):
        assert source.head is not None
        logits = module(given.task_images(i).double()) @ source.head.weight.double().T + source.head.bias
        chances = logits.softmax(1)
        found -= float((chances * chances.log()).sum(1).mean())
    return found


@pytest.mark.parametrize("per", ["tensor", "task"])
def test_the_first_step_goes_down_the_entropy_of_each_coefficient(per: str) -> None:
    given = group(2, images=1)
    vectors = task_vectors(given)
    found = fitted(given, "ada_merging", steps=1, batch_size=2, per=per, lr=0.01)
    start = torch.full((2, len(vectors[0])), 0.3, dtype=torch.float64)
    expected = start.clone()
    groups = [[j] for j in range(len(vectors[0]))] if per == "tensor" else [list(range(len(vectors[0])))]
    for i in (0, 1):
        for own in groups:
            above, below = start.clone(), start.clone()
            above[i, own] += 1e-4
            below[i, own] -= 1e-4
            slope = total_entropy(given, above) - total_entropy(given, below)
            expected[i, own] -= 0.01 * (slope > 0) - 0.01 * (slope < 0)  # the first step of Adam
    assert given.base is not None
    merged = {
        n: given.base.weights[n].double() + sum(expected[i, j] * v[n] for i, v in enumerate(vectors))
        for j, n in enumerate(vectors[0])
    }
    assert_close(found.weights, {n: torch.as_tensor(t) for n, t in merged.items()})
    assert found.facts.keys() == {"coefficient of t0", "coefficient of t1"}


def test_no_step_is_task_arithmetic_and_many_lower_the_entropy() -> None:
    given = group(2)
    assert_close(
        fitted(given, "ada_merging", steps=0).weights,
        fitted(given, "task_arithmetic", coefficient=0.3).weights,
    )
    entropies = []
    for steps in (0, 40):
        found = fitted(given, "ada_merging", steps=steps, per="task", lr=0.02)
        rows = torch.tensor([[found.facts[f"coefficient of t{i}"]] for i in (0, 1)]).expand(2, 6)
        entropies.append(total_entropy(given, rows))
    assert entropies[1] < entropies[0]


def test_sources_without_a_head_are_refused() -> None:
    given = group(2)
    sources = [given.sources[0], replace(given.sources[1], head=None)]
    with pytest.raises(ConfigError) as error:
        fitted(replace(given, sources=sources), "ada_merging")
    assert str(error.value) == (
        "method=ada_merging needs predictions, and t1 has no head. Pass its head "
        "(models.sources.N.head=...), or take method=average."
    )
