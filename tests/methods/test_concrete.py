from __future__ import annotations

import torch
from torch import Tensor

from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods import Problem
from fsmerge_cli.training.teachers import network
from tests.support.common_initialisation import assert_close, fitted, group, parent, task_vectors

Table = dict[str, Tensor]


def merged(given: Problem, coefficients: Tensor, masks: Table) -> Table:
    """W_0 + m sum_i c_i t_i in fp64; coefficients: [k, tensors]."""
    assert given.base is not None
    vectors = task_vectors(given)
    return {
        n: given.base.weights[n].double()
        + masks[n] * sum(coefficients[i, j] * v[n] for i, v in enumerate(vectors))
        for j, n in enumerate(vectors[0])
    }


def total_entropy(given: Problem, weights: Table) -> float:
    """Of all images of every task."""
    assert given.base is not None
    module, found = network(given.base).double(), 0.0
    module.load_state_dict(weights)
    for i, source in enumerate(given.sources):
        assert source.head is not None
        logits = module(given.task_images(i).double()) @ source.head.weight.double().T + source.head.bias
        chances = logits.softmax(1)
        found -= float((chances * chances.log()).sum(1).mean())
    return found


def drawn(logits: Table, random: torch.Generator, temperature: float) -> Table:
    """A relaxed mask of every tensor, of mean 1."""
    found = {}
    for n, x in logits.items():
        u = torch.rand(x.shape, generator=random).double()
        odds = x.exp() * u / (1 - u)
        mask = 1 / (1 + odds ** (-1 / temperature))
        found[n] = mask / (mask.sum() / mask.numel())
    return found


def test_one_step_of_the_coefficients_then_one_of_the_mask() -> None:
    given = group(2, base=parent(widths=(3, 2)), images=1)
    names = list(task_vectors(given)[0])
    found = fitted(
        given, "concrete", mask_steps=1, steps=0, batch_size=2, mask_lr=0.05, inner_lr=0.2, mask_logit=0.5
    )
    assert given.base is not None
    logits = {n: torch.full_like(given.base.weights[n], 0.5).double() for n in names}
    state = generator(given.seed, "concrete", "mask").get_state()

    def loss(coefficients: Tensor, own: Table) -> float:
        random = torch.Generator()
        random.set_state(state)
        return total_entropy(given, merged(given, coefficients, drawn(own, random, 0.5)))

    start = torch.full((2, len(names)), 0.3, dtype=torch.float64)
    inner = start.clone()
    for i in (0, 1):
        for j in range(len(names)):
            there = torch.zeros_like(start)
            there[i, j] = 1e-4
            inner[i, j] -= 0.2 * torch.tensor(loss(start + there, logits) - loss(start - there, logits)).sign()
    stepped = {n: x.clone() for n, x in logits.items()}
    for n, x in logits.items():
        for place in range(x.numel()):
            there = torch.zeros(x.numel(), dtype=torch.float64)
            there[place] = 1e-3
            above, below = ({**logits, n: x + s * there.reshape(x.shape)} for s in (1, -1))
            slope = loss(inner, above) - loss(inner, below)
            stepped[n].flatten()[place] -= 0.05 * ((slope > 1e-10) - (slope < -1e-10))  # 0: a unit that is dead
    random = generator(given.seed, "concrete", "mask")
    drawn(logits, random, 0.5)
    assert_close(found.weights, merged(given, start, drawn(stepped, random, 0.5)))
    assert any(not torch.equal(stepped[n], logits[n]) for n in names)


def test_a_certain_mask_is_ada_merging_without_bounds() -> None:
    given = group(2)
    sure = {"mask_steps": 0, "mask_logit": 80.0}
    assert_close(
        fitted(given, "concrete", steps=0, **sure).weights,
        fitted(given, "task_arithmetic", coefficient=0.3).weights,
    )
    outside = fitted(given, "concrete", steps=40, lr=0.05, per="task", **sure)
    assert min(outside.facts.values()) < 0 or max(outside.facts.values()) > 1


def test_training_the_coefficients_lowers_the_entropy() -> None:
    given = group(2)
    before, after = (fitted(given, "concrete", mask_steps=5, steps=n, lr=0.02).weights for n in (0, 40))
    entropies = [total_entropy(given, {n: t.double() for n, t in own.items()}) for own in (before, after)]
    assert entropies[1] < entropies[0]
