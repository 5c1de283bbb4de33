"""Identities that hold for every architecture family; each test module gives its own variants and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods.base import Method
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import MergeMaps, start_maps
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import network
from tests.supernet.test_fold import double


def check_table(source: Source) -> None:
    """The specification knows every tensor, and identity maps fold to the model itself, to the bit."""
    plan = compile_plan([source, replace(source, name="twin")])
    weights = [source.weights, source.weights]
    folded = fold(plan, start_maps(plan, weights, "diagonal", "first"), weights)
    assert folded.keys() == source.weights.keys()
    assert all(torch.equal(folded[n], source.weights[n]) for n in folded)


def check_permutation(source: Source, inputs: Inputs) -> None:
    """A random permutation of every space, with heads kept whole, leaves the function unchanged."""
    plan = compile_plan([source, replace(source, name="twin")])
    source = replace(source, weights=double(source))
    permutations = random_permutations(plan, 0, torch.Generator().manual_seed(3))
    permuted = replace(source, weights=permute(plan, source.weights, permutations))
    changed = [n for n in source.weights if not torch.equal(source.weights[n], permuted.weights[n])]
    assert len(changed) > 0.8 * len(source.weights)
    before, after = network(source)(inputs), network(permuted)(inputs)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, before[:, plan.feature_order(permutations)], rtol=1e-9, atol=1e-11)


def check_fold(sources: Sequence[Source], maps: MergeMaps, inputs: Inputs) -> None:
    """The folded network has the outputs and gradients of the unfolded one, in fp64."""
    plan, weights = compile_plan(sources), [double(s) for s in sources]
    gradients, outputs = [], []
    for model in (SuperNet(plan, maps, weights), UnfoldedSuperNet(plan, maps, weights)):
        maps.zero_grad(set_to_none=True)
        features = model(inputs)
        estimates = [model.project(features, i) for i in range(len(sources))]
        # In proportion, so that the sine of large features does not magnify rounding.
        sum((e / e.detach().abs().max()).sin().sum() for e in estimates).backward()  # type: ignore[union-attr]
        outputs.append([features, *estimates])
        gradients.append({n: p.grad.clone() for n, p in maps.named_parameters() if p.grad is not None})
    assert gradients[0]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)


def check_permuted_copy(method: Method, source: Source, images: Inputs, tolerance: float = 1e-3) -> None:
    """A network merged with its permuted copy is that network, for both."""
    plan = compile_plan([source, replace(source, name="copy")])
    orders = random_permutations(plan, 0, torch.Generator().manual_seed(3))
    copy = replace(source, name="copy", weights=permute(plan, source.weights, orders))
    every = torch.arange(len(images))
    sources = [source, copy]
    problem = Problem(method.plan(sources), sources, Images(images, every % 2, every, every[:0]))
    solution = method.fit(problem)
    with torch.no_grad():
        found = network(replace(source, weights=solution.weights))(images)
        for own, U in zip(sources, solution.projectors):
            expected = network(own)(images)
            scale = float(expected.abs().max())
            torch.testing.assert_close(found @ U.T / scale, expected / scale, rtol=tolerance, atol=tolerance)
