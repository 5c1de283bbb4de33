from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fsmerge_cli.alignment.least_squares import linear_modules, solve
from fsmerge_cli.alignment.statistics import grams
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.regmean import RegMean, Regression
from fsmerge_cli.methods.regmean_pp import RegMeanPlusPlus
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_closed_form_is_least_squares_on_stacked_rows() -> None:
    inputs = [normal(40, 6, seed=1), normal(40, 6, seed=2) * 3]
    weights = [normal(4, 6, seed=3), normal(4, 6, seed=4)]
    stacked = torch.cat(inputs)
    targets = torch.cat([X @ W.T for X, W in zip(inputs, weights)])
    expected = torch.linalg.lstsq(stacked, targets).solution.T
    found, condition = solve([X.T @ X / len(X) for X in inputs], weights, scale=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    values = torch.linalg.eigvalsh(sum(X.T @ X for X in inputs) / 40)
    assert condition == pytest.approx(float(values[-1] / values[0]), rel=1e-3)


def test_scale_0_is_the_mean_weighted_by_the_inputs_energy() -> None:
    inputs, weights = [normal(9, 3, seed=1), normal(9, 3, seed=2)], [normal(2, 3, seed=3), normal(2, 3, seed=4)]
    energies = [(X**2).mean(0) for X in inputs]
    expected = sum(W * e for W, e in zip(weights, energies)) / sum(energies)
    found, _ = solve([X.T @ X / len(X) for X in inputs], weights, scale=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_directions_without_input_take_the_mean() -> None:
    X = torch.zeros(5, 3, dtype=torch.float64)
    X[:, 0] = 1.0
    weights = [normal(2, 3, seed=3), normal(2, 3, seed=4)]
    found, _ = solve([X.T @ X / 5] * 2, weights, scale=1.0)
    torch.testing.assert_close(found, sum(weights) / 2)


@pytest.mark.full
@pytest.mark.parametrize("variant", ["class token", "q/k norm", "packed SwiGLU (DINOv2 giant)", "pre-norm (CLIP)"])
def test_streamed_grams_are_those_of_all_rows_at_once(variant: str) -> None:
    source = vit_source(variant, 1)
    plan = compile_plan([source, replace(source, name="b")])
    modules = linear_modules(plan)
    images = random_images(1, 11, (2, 8, 8)).images
    module = network(source).double()
    cpu = torch.device("cpu")
    small = grams(module, modules, images.double(), 3, cpu)
    large = grams(module, modules, images.double(), 100, cpu)
    assert set(small) == set(modules)
    for name in modules:
        torch.testing.assert_close(small[name], large[name], rtol=1e-10, atol=1e-12)
    pixels = F.unfold(images.double(), 4, stride=4).transpose(1, 2).reshape(-1, 32)
    torch.testing.assert_close(large["patch_embed.proj"], pixels.T @ pixels / len(pixels))


@pytest.mark.parametrize("kind", ["mlp", "vit"])
def test_identical_sources_return_themselves(kind: str) -> None:
    first = mlp_source("a", [8, 6], 1) if kind == "mlp" else vit_source("class token", 1)
    copies = [first, replace(first, name="b")]
    problem = Problem(compile_plan(copies), copies, random_images(2, 4, first.arch.input_size))
    solution = RegMean(align="none").fit(problem)
    for name, tensor in solution.weights.items():
        torch.testing.assert_close(tensor, first.weights[name], rtol=1e-4, atol=1e-5)
    assert solution.facts["condition_number"] > 1


def test_a_fused_qkv_is_one_solve_equal_to_three() -> None:
    G = [X.T @ X / 30 for X in (normal(30, 5, seed=1), normal(30, 5, seed=2))]
    weights = [normal(9, 5, seed=3), normal(9, 5, seed=4)]
    whole, _ = solve(G, weights, 0.9)
    parts = [solve(G, [w[i : i + 3] for w in weights], 0.9)[0] for i in (0, 3, 6)]
    torch.testing.assert_close(whole, torch.cat(parts))


@pytest.mark.parametrize("method", [RegMean(), RegMeanPlusPlus()])
def test_a_task_without_images_is_reported(method: Regression) -> None:
    sources = [mlp_source(name, [8, 6], seed) for seed, name in enumerate("abc")]
    images = random_images(3, 4).regroup([None, 1, None])
    with pytest.raises(DataError) as error:
        method.fit(Problem(compile_plan(sources), sources, images))
    assert str(error.value) == (
        "this method needs unlabelled images of every task, but there are none of a, c. Raise "
        "data.images_per_task (with data=per_task: data.tasks.TASK.images_per_task), or take method=fs_merge or "
        "method=kd, which run every source on the images of all tasks."
    )
