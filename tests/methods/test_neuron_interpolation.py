from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fsmerge_cli.alignment.attribution import conductance, unit_importance
from fsmerge_cli.alignment.statistics import places
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.neuron_interpolation import NeuronInterpolation
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import network
from tests.support.encoders import encoder_source, text_problem
from tests.support.shuffled import assert_the_function_of_all, shuffled
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source

Make = Callable[..., Problem]


def test_the_conductance_of_a_layer_sums_to_the_change_of_the_logit() -> None:
    source = mlp_source("a", [7, 6], 1)
    weights = {n: torch.zeros_like(t) if n.endswith("bias") else t for n, t in source.weights.items()}
    source = replace(source, weights=weights)  # without biases the path to black pixels crosses no kink
    assert source.head is not None
    plan = compile_plan([source, replace(source, name="b")])
    pixels = random_images(1, 5, source.arch.input_size).images[:5]
    module = network(source)
    logits = source.head(module(pixels))
    change = logits.amax(1) - source.head(module(torch.zeros_like(pixels)))[range(5), logits.argmax(1)]
    found = conductance(module, source.head, pixels, places(plan))
    assert {place.space for place in found} == set(plan.spaces)
    for value in found.values():
        torch.testing.assert_close(value.sum(1), change, rtol=1e-4, atol=1e-5)


def test_a_unit_that_nothing_reads_has_no_importance(make_problem: Make) -> None:
    source = mlp_source("a", [7, 6], 1)
    weights = {n: t.clone() for n, t in source.weights.items()}
    weights["fc1.weight"][:, 2] = 0
    problem = make_problem([replace(source, weights=weights), mlp_source("b", [7, 6], 2)])
    found = unit_importance(problem, 0)
    hidden = next(name for name in found if len(found[name]) == 7)
    assert float(found[hidden][2]) < 1e-6
    assert float(found[hidden].sum()) == pytest.approx(1)
    assert float(found[hidden].max()) > 0.05


@pytest.mark.parametrize("importance", ["conductance", "uniform"])
def test_every_layer_fits_the_weighted_means_on_the_inputs_of_the_merged_layers(
    importance: str, make_problem: Make
) -> None:
    problem = make_problem(per_task=30)
    method = NeuronInterpolation(importance=importance, ridge=0.0)  # type: ignore[arg-type]
    found = method.fit(problem).weights
    pairs = method.clustered(problem)
    x = problem.images.images.double().flatten(1)
    here, states = x, [x, x]
    for layer, name in enumerate(problem.plan.spaces):
        W, b = found[f"fc{layer}.weight"].double(), found[f"fc{layer}.bias"].double()
        targets = torch.zeros(len(x), len(b), dtype=torch.float64)
        for i, source in enumerate(problem.sources):
            z = states[i] @ source.weights[f"fc{layer}.weight"].double().T + source.weights[f"fc{layer}.bias"]
            states[i], targets = z.relu(), targets + z @ pairs[name][0][i].T
        rows = torch.cat([here, torch.ones(len(x), 1)], 1)
        left = rows.T @ (here @ W.T + b - targets)  # zero where the error is least
        assert float(left.abs().max()) < 1e-3 * float((rows.T @ targets).abs().max())
        here = (here @ W.T + b).relu()


@pytest.mark.parametrize("source", [mlp_source("a", [8, 6], 1), vit_source("class token", 1)], ids=["mlp", "vit"])
def test_a_reordered_copy_gives_the_source(source: Source) -> None:
    problem = shuffled(source, 1)
    assert_the_function_of_all(problem, NeuronInterpolation().fit(problem))


def test_texts_are_refused_with_conductance() -> None:
    with pytest.raises(ConfigError) as error:
        NeuronInterpolation().check(text_problem([encoder_source("BERT", seed) for seed in (1, 2)]))
    assert str(error.value) == (
        "method.importance=conductance follows images from black to their pixels, and texts have none. Pass "
        "method.importance=uniform."
    )
