"""`method.repair`: hidden layers get back the mean and the standard deviation of the sources' pre-activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fsmerge_cli.alignment.channels import moments, reset_layers
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Method
from fsmerge_cli.methods.slerp import Slerp
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network
from tests.support.shuffled import assert_the_function_of_all, shuffled, source_of
from tests.support.sources import mlp_source, random_images
from tests.support.vggs import vgg_source

FULL = pytest.mark.full

KINDS: dict[str, tuple[Callable[[int], Source], tuple[str, ...]]] = {
    "mlp": (lambda seed: mlp_source(f"s{seed}", [12, 9], seed), ("fc0", "fc1")),
    "class token": (lambda seed: source_of("class token", seed), ("blocks.0.mlp.fc1", "blocks.1.mlp.fc1")),
    "packed SwiGLU (DINOv2 giant)": (
        lambda seed: source_of("packed SwiGLU (DINOv2 giant)", seed),
        ("blocks.0.mlp.fc1", "blocks.1.mlp.fc1"),
    ),
    "vgg": (
        lambda seed: vgg_source("plain", seed),
        (*(f"features.{i}" for i in (0, 3, 6, 8, 11)), "pre_logits.fc1", "pre_logits.fc2"),
    ),
    "mlp, batch norm": (lambda seed: source_of("mlp, batch norm", seed), ()),
    "resnet": (lambda seed: source_of("resnet", seed), ()),
    "q/k norm": (lambda seed: source_of("q/k norm", seed), ("blocks.0.mlp.fc1", "blocks.1.mlp.fc1")),
    "attention and MLP norms": (lambda seed: source_of("attention and MLP norms", seed), ()),
}


def problem_of(kind: str) -> Problem:
    sources = [KINDS[kind][0](seed) for seed in (1, 2)]
    return Problem(compile_plan(sources), sources, random_images(2, 8, sources[0].arch.input_size))


@pytest.mark.parametrize("kind", ["mlp", *(pytest.param(own, marks=FULL) for own in KINDS if own != "mlp")])
def test_the_layers_are_those_in_front_of_an_activation(kind: str) -> None:
    assert reset_layers(problem_of(kind).plan, batchnorm=False, others=True) == KINDS[kind][1]


@pytest.mark.parametrize(
    "kind", ["mlp", *(pytest.param(k, marks=FULL) for k in ("class token", "packed SwiGLU (DINOv2 giant)", "vgg"))]
)
@pytest.mark.parametrize("method", [Average(repair=True, task_weights=(1.0, 3.0)), Slerp(t=0.75, repair=True)])
def test_the_outputs_have_the_mean_statistics_of_the_sources(kind: str, method: Method) -> None:
    problem = problem_of(kind)
    names, images = KINDS[kind][1], problem.images.images
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(method.fit(problem).weights), assign=True)
    one, two = (moments(network(source), names, images, problem) for source in problem.sources)
    for name, (mean, variance) in moments(merged, names, images, problem).items():
        std = 0.25 * one[name][1].sqrt() + 0.75 * two[name][1].sqrt()
        alive = variance.sqrt() > 1e-3 * variance.sqrt().max()
        assert alive.double().mean() > 0.5
        torch.testing.assert_close(variance.sqrt()[alive], std[alive], rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(mean, 0.25 * one[name][0] + 0.75 * two[name][0], rtol=2e-3, atol=1e-4)


def test_it_is_the_slow_loop_over_units() -> None:
    """Layer by layer, unit by unit: w <- a w and b <- a (b - m) + m', as the paper writes it."""
    problem = problem_of("mlp")
    found = Average(repair=True).fit(problem).weights
    x: Any = problem.images.images.flatten(1).double()
    inputs, merged = [x, x], x
    for layer in ("fc0", "fc1"):
        W, b = (
            sum(s.weights[f"{layer}.{leaf}"].double() for s in problem.sources) / 2 for leaf in ("weight", "bias")
        )
        own = []
        for i, source in enumerate(problem.sources):
            own.append(inputs[i] @ source.weights[f"{layer}.weight"].double().T + source.weights[f"{layer}.bias"])
        for unit in range(len(W)):
            z = merged @ W[unit] + b[unit]
            std = sum(float(o[:, unit].std(correction=0)) for o in own) / 2
            mean = sum(float(o[:, unit].mean()) for o in own) / 2
            a = std / float(z.std(correction=0))
            b[unit] = a * (b[unit] - z.mean()) + mean
            W[unit] = a * W[unit]
        torch.testing.assert_close(found[f"{layer}.weight"].double(), W, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[f"{layer}.bias"].double(), b, rtol=1e-4, atol=1e-5)
        merged = (merged @ W.T + b).relu()
        inputs = [o.relu() for o in own]


@pytest.mark.full
@pytest.mark.parametrize(
    "method",
    ["activation_matching", "weight_matching", "ot_fusion", "cca", "orthogonal_matching", "zipit", "pleas"],
)
@pytest.mark.parametrize("kind", ["mlp", "class token"])
def test_permuted_copies_stay_the_function(kind: str, method: str) -> None:
    problem = shuffled(source_of(kind), 1)
    assert_the_function_of_all(problem, METHODS[method](repair=True).fit(problem))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Average(repair=True).fit(problem_of("mlp, batch norm"))
    assert str(error.value) == (
        "method.repair=true resets the statistics of hidden layers with a bias and without a norm, and these "
        "networks have none. Pass method.repair=false."
    )
    sources = problem_of("mlp").sources
    with pytest.raises(DataError) as missing:
        Average(repair=True).fit(Problem(compile_plan(sources), sources, random_images(2, 0)))
    assert str(missing.value) == (
        "method.repair=true needs unlabelled images of the tasks. Pass data=... with data.images_per_task of 1 or "
        "more, or method.repair=false."
    )
    assert Average(repair=True).needs_images
    assert not Average().needs_images
