"""Statistics of feature maps: every position of a convolution's input or output is a row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fsmerge_cli.alignment.channels import images_of_reset, moments, with_statistics
from fsmerge_cli.alignment.least_squares import solve
from fsmerge_cli.alignment.matching import reordered
from fsmerge_cli.alignment.permutation import random_permutations
from fsmerge_cli.alignment.statistics import correlations, grams
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.methods.activation_matching import ActivationMatching
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Method
from fsmerge_cli.methods.regmean import RegMean
from fsmerge_cli.methods.regmean_pp import RegMeanPlusPlus
from fsmerge_cli.methods.slerp import Slerp
from fsmerge_cli.methods.zipit import ZipIt
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network
from tests.support.resnets import resnet_source
from tests.support.sources import random_images

DEEP = "deep stem, average pooling on the shortcut"


def problem(variant: str = DEEP) -> Problem:
    sources = [resnet_source(variant, i) for i in (1, 2)]
    images = random_images(2, 5, (2, 16, 16))
    return Problem(compile_plan(sources), sources, images, Hardware(eval_batch=3), torch.device("cpu"), 0)


def inputs(given: Problem, module: str, source: int = 0) -> torch.Tensor:
    """The input of a convolution on all images."""
    found: list[torch.Tensor] = []
    own = network(given.sources[source])
    own.get_submodule(module).register_forward_pre_hook(lambda part, args: found.append(args[0].clone()))
    with torch.no_grad():
        own(given.images.images)
    return found[0]


@pytest.mark.full
def test_the_statistics_of_the_written_batchnorms_are_those_of_outputs_without_bias() -> None:
    given = problem("dilation")
    weights = given.sources[0].weights
    found = with_statistics(given, Solution(weights, ()))
    own = network(given.sources[0])
    for name in ("conv1.0", "layer1.0.conv2", "layer4.0.conv2", "layer2.0.downsample.1"):
        part = own.get_submodule(name)
        output = F.conv2d(
            inputs(given, name), part.weight, None, part.stride, part.padding, part.dilation
        ).double()
        rows = output.transpose(0, 1).flatten(1)
        mean, variance = found.statistics[name]
        torch.testing.assert_close(mean, rows.mean(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variance, rows.var(1, unbiased=False), rtol=1e-4, atol=1e-6)


def test_correlations_count_every_position() -> None:
    given = problem()
    networks = [network(source) for source in given.sources]
    found = correlations(given.plan, networks, given.images.images, 3, given.device)
    rows = [inputs(given, "layer2.0.conv2", i).double().movedim(1, -1).flatten(0, 2) for i in (0, 1)]
    expected = torch.corrcoef(torch.cat(rows, 1).T).nan_to_num(0)
    torch.testing.assert_close(found["h2_0_1"], expected, rtol=1e-5, atol=1e-5)


def test_the_gram_matrix_of_a_kernel_gives_its_output() -> None:
    given = problem("dilation")
    modules = ("conv1.0", "layer1.0.conv2", "layer4.0.conv2")
    own = network(given.sources[0])
    found = grams(own, modules, given.images.images, 3, given.device)
    for name in modules:
        part = own.get_submodule(name)
        output = F.conv2d(inputs(given, name), part.weight, None, part.stride, part.padding, part.dilation)
        rows = output.double().transpose(0, 1).flatten(1)
        kernel = part.weight.double().flatten(1)
        expected = rows @ rows.T / rows.shape[1]
        torch.testing.assert_close(kernel @ found[name] @ kernel.T, expected, rtol=1e-4, atol=1e-6)


def test_least_squares_of_kernels_minimise_the_error_of_the_outputs() -> None:
    given, name = problem(), "layer2.0.conv2"
    weights = [source.weights[f"{name}.weight"] for source in given.sources]
    own = [inputs(given, name, i) for i in (0, 1)]
    found = [grams(network(s), (name,), given.images.images, 3, given.device)[name] for s in given.sources]

    def error(kernel: torch.Tensor) -> float:
        outputs = [(F.conv2d(x, w, padding=1) - F.conv2d(x, kernel, padding=1)) for x, w in zip(own, weights)]
        return sum(float(output.double().square().mean()) for output in outputs)

    solved = solve(found, weights, 1.0)[0]
    assert solved.shape == weights[0].shape
    best, random = error(solved), torch.Generator().manual_seed(0)
    assert best < 0.9 * error((weights[0] + weights[1]) / 2)
    for _ in range(5):
        assert error(solved + 1e-2 * torch.randn(solved.shape, generator=random)) > best


def test_without_images_or_batchnorms_nothing_is_recorded() -> None:
    given = problem()
    solution = Solution(given.sources[0].weights, ())
    none = replace(given, images=random_images(2, 0, (2, 16, 16)))
    assert with_statistics(none, solution) is solution


def matched() -> tuple[Problem, Source, dict[str, torch.Tensor]]:
    """A source and its permuted copy, and the permutation."""
    given = problem()
    source = given.sources[0]
    orders = random_permutations(given.plan, 0, torch.Generator().manual_seed(3))
    copy = replace(reordered(given.plan, source, orders), name="copy")
    return replace(given, sources=[source, copy]), source, orders


@pytest.mark.full
@pytest.mark.parametrize("method", [ActivationMatching(), ZipIt(), RegMean(), RegMeanPlusPlus()])
def test_a_network_merged_with_its_permuted_copy_is_the_network(method: Method) -> None:
    given, source, orders = matched()
    solution = method.fit(given)
    images = given.images.images
    with torch.no_grad():
        exact = network(source)(images)
        found = network(replace(source, weights=solution.weights))(images)
        for projector, expected in zip(solution.projectors, (exact, exact[:, orders[given.plan.features.space]])):
            scale = float(expected.abs().max())
            torch.testing.assert_close(found @ projector.T / scale, expected / scale, rtol=1e-3, atol=1e-3)


@pytest.mark.full
@pytest.mark.parametrize(
    "method", [Average(task_weights=(1.0, 3.0)), Slerp(t=0.75), RegMean(align="none", task_weights=(1.0, 3.0))]
)
def test_after_a_reset_the_outputs_have_the_mean_statistics_of_the_sources(method: Method) -> None:
    given = problem()
    images = given.images.images
    names = given.plan.family.folding.norms(given.plan.arch) if given.plan.family.folding else ()
    merged = replace(given.sources[0], weights=method.fit(given).weights)
    found = moments(network(merged), names, images, given)
    own = [moments(network(source), names, images, given) for source in given.sources]
    for name in names:
        mean, std = found[name][0], found[name][1].sqrt()
        (mean_1, variance_1), (mean_2, variance_2) = (one[name] for one in own)
        scale = float(std.max())
        alive = std > 1e-4 * scale
        expected = 0.25 * variance_1.sqrt() + 0.75 * variance_2.sqrt()
        torch.testing.assert_close(std[alive] / scale, expected[alive] / scale, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mean / scale, (0.25 * mean_1 + 0.75 * mean_2) / scale, rtol=1e-3, atol=1e-3)


def test_without_the_option_or_images_nothing_is_reset() -> None:
    given = problem()
    expected = (given.sources[0].weights["conv1.0.bias"] + given.sources[1].weights["conv1.0.bias"]) / 2
    none = replace(given, images=random_images(2, 0, (2, 16, 16)))
    for own, method in ((given, Average(reset_batchnorm=False)), (none, Average())):
        solution = method.fit(own)
        assert solution.maps is not None
        torch.testing.assert_close(solution.weights["conv1.0.bias"], expected)
    assert Average().fit(given).maps is None


def test_a_pass_of_a_reset_has_equally_many_images_of_every_task() -> None:
    given = replace(problem(), images=random_images(2, 700, (2, 2, 2)))
    rows = images_of_reset(given)
    assert given.images.task[rows].bincount().tolist() == [256, 256]
