from __future__ import annotations

import torch

from fsmerge_cli.alignment.least_squares import solve
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.regmean_pp import RegMeanPlusPlus, stages
from fsmerge_cli.models.plan import compile_plan
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source


def test_every_layer_is_solved_on_the_outputs_of_the_merged_layers_before_it() -> None:
    sources = [mlp_source(n, [8, 6, 5], i, activation="tanh") for i, n in enumerate("ab")]
    images = random_images(2, 20)
    found = RegMeanPlusPlus(align="none", scale=0.7).fit(Problem(compile_plan(sources), sources, images)).weights
    inputs = [images.images[images.task == i].flatten(1) for i in range(2)]
    for layer in range(3):
        name = f"fc{layer}.weight"
        grams = [X.double().T @ X.double() / len(X) for X in inputs]
        expected, _ = solve(grams, [s.weights[name] for s in sources], 0.7)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
        bias = sum(s.weights[f"fc{layer}.bias"] for s in sources) / 2
        torch.testing.assert_close(found[f"fc{layer}.bias"], bias)
        inputs = [torch.tanh(X @ found[name].T + bias) for X in inputs]


def test_stages_follow_the_forward_pass() -> None:
    plan = compile_plan([vit_source("average pooling, fc_norm", i) for i in (1, 2)])
    found = stages(plan)
    assert found[0] == ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert all(name.startswith("blocks.0.") for name in found[1])
    assert all(name.startswith("blocks.1.") for name in found[2])
    assert found[3] == ["fc_norm.weight", "fc_norm.bias"]
