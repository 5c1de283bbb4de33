from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.fisher import Fisher
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source

Make = Callable[..., Problem]


def information(problem: Problem, i: int) -> dict[str, Tensor]:
    """Image by image and class by class, in fp64, without a floor."""
    source = problem.sources[i]
    assert source.head is not None
    module: nn.Module = network(source).double().requires_grad_(True)
    found = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    images = problem.task_images(i).double()
    for image in images:
        for label in range(3):
            module.zero_grad()
            logits = module(image[None]) @ source.head.weight.double().T + source.head.bias
            score = logits.log_softmax(1)[0, label]
            score.backward()  # type: ignore[no-untyped-call]
            for n, p in module.named_parameters():
                assert p.grad is not None
                found[n] += score.detach().exp() * p.grad.square() / len(images)
    return found


def test_the_mean_is_weighted_by_the_information_and_by_the_tasks(make_problem: Make) -> None:
    problem = make_problem(per_task=3)
    found = Fisher(task_weights=(3.0, 1.0), floor=1e-12).fit(problem).weights
    a, b = (information(problem, i) for i in (0, 1))
    for n, F in a.items():
        first, second = (source.weights[n].double() for source in problem.sources)
        known = (F > 1e-9) | (b[n] > 1e-9)  # a dead unit has no information: only the floors are left
        expected = (3 * F * first + b[n] * second) / (3 * F + b[n])
        torch.testing.assert_close(found[n].double()[known], expected[known], rtol=1e-3, atol=1e-5)
        assert bool(known.any())


def test_entries_without_information_are_averaged_and_copies_give_the_source(make_problem: Make) -> None:
    one = mlp_source("a", [8, 6], 1, norm="batch")
    copies = make_problem([one, replace(one, name="b")], per_task=2)
    for n, t in Fisher().fit(copies).weights.items():
        torch.testing.assert_close(t, one.weights[n], rtol=1e-5, atol=1e-6)


def test_more_classes_than_labels_are_sampled_with_the_right_mean(make_problem: Make) -> None:
    problem = make_problem(per_task=2)
    method = Fisher(labels=1)
    chances = torch.tensor([0.2, 0.5, 0.3])
    random = torch.Generator().manual_seed(0)
    drawn = [method._labels(chances, random)[0] for _ in range(2000)]
    assert {weight for _, weight in drawn} == {1.0}
    shares = torch.bincount(torch.tensor([label for label, _ in drawn])) / 2000
    torch.testing.assert_close(shares, chances, rtol=0, atol=0.04)
    first, again = method.fit(problem).weights, method.fit(problem).weights
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert Fisher()._labels(chances, random) == [(0, pytest.approx(0.2)), (1, 0.5), (2, pytest.approx(0.3))]


def test_sources_without_a_head_are_refused(make_problem: Make) -> None:
    sources = [mlp_source("a", [8], 1), mlp_source("b", [8], 2, classes=None)]
    with pytest.raises(ConfigError) as error:
        Fisher().fit(make_problem(sources))
    assert str(error.value) == (
        "method=fisher needs predictions, and b has no head. Pass its head (models.sources.N.head=...), or take "
        "method=average."
    )
