"""Identities of the fold, and the folded SuperNet compared with the unfolded reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold, fold_head
from fsmerge_cli.supernet.map_set import MergeMaps, start_maps
from fsmerge_cli.supernet.maps import MAPS
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source

CASES = {
    "k=2": {"widths": [[8, 6], [8, 6]]},
    "k=3": {"widths": [[8, 6], [8, 6], [8, 6]]},
    "unequal widths": {"widths": [[8, 6], [5, 7]]},
    "unequal widths, k=3": {"widths": [[8, 6], [5, 7], [9, 4]], "width": (7, 5)},
    "no bias": {"widths": [[8, 6], [8, 6]], "bias": False},
    "batch norm": {"widths": [[8, 6], [5, 7]], "norm": "batch"},
    "one layer": {"widths": [[5], [5]]},
    "four layers, gelu": {"widths": [[8, 7, 6, 5], [8, 6, 7, 5]], "activation": "gelu"},
}


def build(case: str) -> tuple[Plan, list[Source]]:
    options = dict(CASES[case])
    options.setdefault("activation", "tanh")  # dead ReLU units would have a zero gradient
    widths, width = options.pop("widths"), options.pop("width", None)
    sources = [mlp_source(f"s{i}", w, seed=i, **options) for i, w in enumerate(widths)]
    return compile_plan(sources, width), sources


def random_maps(plan: Plan, sources: Sequence[Source], structure: str) -> MergeMaps:
    maps = start_maps(plan, [s.weights for s in sources], structure, "first", rank=3)
    random = torch.Generator().manual_seed(5)
    for parameter in maps.parameters():
        parameter.data = torch.rand(parameter.shape, generator=random) - 0.3
    return maps.double()


def double(source: Source) -> dict[str, torch.Tensor]:
    return {n: t.double() if t.is_floating_point() else t for n, t in source.weights.items()}


@pytest.mark.full
@pytest.mark.parametrize("structure", MAPS)
@pytest.mark.parametrize("case", CASES)
def test_folded_equals_unfolded_outputs_and_gradients(case: str, structure: str) -> None:
    plan, sources = build(case)
    maps = random_maps(plan, sources, structure)
    weights = [double(s) for s in sources]
    images = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    gradients, outputs = [], []
    for model in (SuperNet(plan, maps, weights), UnfoldedSuperNet(plan, maps, weights)):
        maps.zero_grad(set_to_none=True)
        features = model(images)
        estimates = [model.project(features, i) for i in range(len(sources))]
        sum(e.sin().sum() for e in estimates).backward()
        outputs.append([features, *estimates])
        gradients.append({n: p.grad.clone() for n, p in maps.named_parameters()})
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-12)
    assert gradients[0].keys() == gradients[1].keys()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    assert all(g.abs().max() > 0 for name, g in gradients[0].items() if "unit:" not in name)


def test_the_unfolded_reference_in_another_precision() -> None:
    plan, sources = build("k=2")
    maps, weights = random_maps(plan, sources, "full").float(), [s.weights for s in sources]
    images = torch.rand(5, 1, 4, 4)
    single, reference = UnfoldedSuperNet(plan, maps, weights, torch.float32), UnfoldedSuperNet(plan, maps, weights)
    estimate = single.project(single(images), 1)
    assert (estimate.dtype, reference(images).dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(estimate.double(), reference.project(reference(images), 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["k=2", "no bias", "batch norm"])
def test_fold_of_one_source_with_identity_maps_is_that_source(case: str) -> None:
    _, sources = build(case)
    twin = [sources[0], replace(sources[0], name="other")]
    plan = compile_plan(twin)
    weights = [s.weights for s in twin]
    folded = fold(plan, start_maps(plan, weights, "diagonal", "first"), weights)
    assert folded.keys() == sources[0].weights.keys()
    assert all(torch.equal(folded[n], sources[0].weights[n]) for n in folded)


@pytest.mark.parametrize("structure", MAPS)
@pytest.mark.parametrize("case", ["k=2", "k=3", "no bias", "unequal widths", "four layers, gelu", "batch norm"])
def test_with_start_first_the_merged_model_is_source_1(case: str, structure: str) -> None:
    plan, sources = build(case)  # the merged model has the width of source 1 in these cases
    weights = [s.weights for s in sources]
    supernet = SuperNet(plan, start_maps(plan, weights, structure, "first", rank=2), weights)
    images = torch.rand(7, 1, 4, 4)
    assert torch.equal(supernet(images), network(sources[0])(images))
    assert torch.equal(supernet.project(supernet(images), 0), network(sources[0])(images))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_wider_merged_model_starts_as_source_1(norm: str) -> None:
    sources = [mlp_source("a", [8, 6], 1, norm=norm), mlp_source("b", [8, 6], 2, norm=norm)]
    plan = compile_plan(sources, (11, 9))
    weights = [s.weights for s in sources]
    supernet = SuperNet(plan, start_maps(plan, weights, "full", "first"), weights)
    images = torch.rand(7, 1, 4, 4)
    torch.testing.assert_close(supernet.project(supernet(images), 0), network(sources[0])(images))


def test_the_fold_does_not_change_its_inputs() -> None:
    plan, sources = build("batch norm")
    weights = [s.weights for s in sources]
    before = [{n: t.clone() for n, t in w.items()} for w in weights]
    folded = fold(plan, random_maps(plan, sources, "full").float(), weights)
    for tensor in folded.values():
        tensor.detach().add_(1)
    assert all(torch.equal(b[n], w[n]) for b, w in zip(before, weights) for n in w if "num_batches" not in n)


def test_a_folded_head_reads_merged_features() -> None:
    source = mlp_source("a", [8, 6], 1)
    U, z = torch.randn(6, 5), torch.randn(4, 5)
    assert source.head is not None
    torch.testing.assert_close(fold_head(source.head, U)(z), source.head(z @ U.T))
    assert fold_head(source.head, U).labels == source.head.labels
