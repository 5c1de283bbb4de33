"""The closed form of ResNets: units are selected, layers are regressed on the patches that they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form import space_selection
from fsmerge_cli.alignment.closed_form.patches import input_rows, sampled_places
from fsmerge_cli.alignment.closed_form.steps import steps
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.snapshots import SaveInterval, Snapshots
from fsmerge_cli.training.teachers import network
from tests.alignment.test_closed_form import features, pixels, solve
from tests.support.closed_form_reference import best_units
from tests.support.resnets import VARIANTS, resnet_source

DEEP = "deep stem, average pooling on the shortcut"
QUICK = {DEEP, "stage 1 in the stem's space"}
EVERY = [v if v in QUICK else pytest.param(v, marks=pytest.mark.full) for v in VARIANTS]


def assert_features(found: Sequence[Tensor], sources: Sequence[Source], images: Tensor) -> None:
    for mine, own in zip(found, features(sources, images)):
        torch.testing.assert_close(mine, own, rtol=1e-3, atol=1e-3 * float(own.abs().max()))


@pytest.mark.full
@pytest.mark.parametrize("variant", EVERY)
def test_two_copies_of_a_resnet_one_permuted_are_that_resnet(variant: str) -> None:
    source = resnet_source(variant, 1)
    plan = FSClosedForm().plan([source, replace(source, name="b")])
    orders = random_permutations(plan, 1, torch.Generator().manual_seed(0))
    copy = replace(source, name="copy", weights=permute(plan, source.weights, orders))
    images = pixels(source, 40)
    solution, found = solve(FSClosedForm(views=0, ridge=1e-9), [source, copy], images)
    assert_features(found, [source, copy], images)
    units = [solution.facts[f"units_source_{i}"] for i in (1, 2)]
    assert sum(units) == sum(space.merged for space in plan.spaces.values())


@pytest.mark.full
@pytest.mark.parametrize("correct", [True, False])
def test_as_wide_as_both_sources_is_both_sources(correct: bool) -> None:
    sources = [resnet_source(DEEP, seed, channels=[6, 8, 8, 12]) for seed in (1, 2)]
    method = FSClosedForm(views=0, correct=correct, width=(12, 16, 16, 24), ridge=1e-9)
    images = pixels(sources[0], 30)
    # timm's stem has one width: only sources with the same stem fit beside each other behind it
    shared = {n: t for n, t in sources[0].weights.items() if n.startswith("conv1")}
    sources[1] = replace(sources[1], weights={**sources[1].weights, **shared})
    _, found = solve(method, sources, images)
    assert_features(found, sources, images)


@pytest.mark.full
@pytest.mark.parametrize("variant", EVERY)
def test_without_corrections_the_maps_fold_to_the_weights(variant: str) -> None:
    sources = [resnet_source(variant, seed) for seed in (1, 2)]
    method = FSClosedForm(views=0, correct=False, reset_batchnorm=False)
    solution, _ = solve(method, sources, pixels(sources[0], 12))
    assert solution.maps is not None
    folded = fold(method.plan(sources), solution.maps, [source.weights for source in sources])
    for name, tensor in solution.weights.items():
        torch.testing.assert_close(folded[name], tensor, rtol=0, atol=0)


@pytest.mark.full
@pytest.mark.parametrize("stop", [3, 9])
def test_a_run_that_is_stopped_continues_behind_the_last_finished_layer(stop: int, tmp_path: Path) -> None:
    sources = [resnet_source(DEEP, seed) for seed in (1, 2)]
    method, images = FSClosedForm(views=1), pixels(sources[0], 10)
    every = torch.arange(10)
    problem = Problem(method.plan(sources), sources, Images(images, every % 2, every, every[:0]))
    expected, events = method.fit(problem), list[int]()

    def stopped(event: Event) -> None:
        if event.phase == "solve" and event.done == stop + 1:
            raise KeyboardInterrupt

    def saving(progress: Progress) -> Problem:
        snapshots = Snapshots(tmp_path / "s", every=SaveInterval(steps=1))
        return replace(problem, snapshots=snapshots, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        method.fit(saving(stopped))
    found = method.fit(saving(lambda event: events.append(event.done) if event.phase == "solve" else None))
    assert events[0] == stop + 1
    assert found.facts == expected.facts
    assert all(torch.equal(found.weights[name], t) for name, t in expected.weights.items())
    assert all(map(torch.equal, found.projectors, expected.projectors))


def test_the_layers_are_in_order_and_a_sum_is_solved_behind_its_shortcut() -> None:
    plan = FSClosedForm().plan([resnet_source(DEEP, seed) for seed in (1, 2)])
    found = [(step.module, step.sum, step.block) for step in steps(plan) or ()]
    assert found[:7] == [
        ("conv1.0", None, None),
        ("conv1.3", None, None),
        ("conv1.6", None, None),
        ("layer1.0.conv1", None, "layer1.0"),
        ("layer1.0.downsample.1", None, "layer1.0"),
        ("layer1.0.conv2", "layer1.0.act2", "layer1.0"),
        ("layer2.0.conv1", None, "layer2.0"),
    ]


def test_patches_times_the_weight_are_the_outputs() -> None:
    for module in (nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.Conv2d(3, 5, 1, bias=False)):
        x = torch.randn(2, 3, 7, 7)
        y = module(x)
        places = sampled_places(2, y[0, 0].numel(), 4, torch.Generator().manual_seed(0))
        assert places.shape == (2, 4)
        assert all(len(set(row.tolist())) == 4 for row in places)
        found = input_rows(module, x, places) @ module.weight.flatten(1).T
        torch.testing.assert_close(found, y.flatten(2).gather(2, places[:, None].expand(-1, 5, -1)).mT)
    linear, x = nn.Linear(3, 5, bias=False), torch.randn(2, 3)
    rows = input_rows(linear, x, sampled_places(2, 1, 9, torch.Generator()))
    torch.testing.assert_close(rows[:, 0] @ linear.weight.T, linear(x))


@pytest.mark.full
def test_the_streamed_solution_is_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer with `unfold` and the normal equations in fp64, units chosen by brute force."""
    monkeypatch.setattr(space_selection, "ROWS_PER_CANDIDATE", 10**6)
    sources = [resnet_source(DEEP, seed) for seed in (1, 2)]
    images = pixels(sources[0], 25)
    method = FSClosedForm(views=0, ridge=1e-3, reset_batchnorm=False)
    solution, _ = solve(method, sources, images)
    nets: list[Any] = [network(source).double() for source in sources]
    merged = Dense(nets, images.double(), method.plan(sources).skeleton())
    for name in ("conv1.0", "conv1.3", "conv1.6"):
        merged.layer(name)
    for stage in range(1, 5):
        merged.layer(f"layer{stage}.0.conv1")
        merged.layer(f"layer{stage}.0.downsample.1")
        merged.layer(f"layer{stage}.0.conv2", f"layer{stage}.0.act2")
    for name, tensor in merged.net.state_dict().items():
        torch.testing.assert_close(solution.weights[name].double(), tensor, rtol=5e-3, atol=1e-2, msg=name)


class Dense:
    """The merged network, all activations of all networks at once."""

    def __init__(self, nets: Sequence[Any], images: Tensor, skeleton: nn.Module) -> None:
        self.nets, self.images = nets, images
        self.net: Any = skeleton.to_empty(device="cpu").double()
        for parameter in self.net.parameters():
            nn.init.zeros_(parameter)
        self.chosen: dict[str, list[int]] = {}

    def seen(self, net: Any, name: str, side: str) -> Tensor:
        found = []
        if side == "input":
            handle = net.get_submodule(name).register_forward_pre_hook(lambda m, x: found.append(x[0].clone()))
        else:
            handle = net.get_submodule(name).register_forward_hook(lambda m, x, y: found.append(y.clone()))
        with torch.no_grad():
            net(self.images)
        handle.remove()
        return found[0]

    def units(self, space: str, readers: Sequence[str]) -> list[int]:
        """Forward selection of half of all units by brute force, on the rows of all readers."""
        if space not in self.chosen:
            rows = []
            for name in readers:
                x = (
                    torch.cat([self.seen(net, name, "input") for net in self.nets], 1)
                    .movedim(1, -1)
                    .flatten(0, -2)
                )
                rows.append(x / x.square().mean().sqrt() / len(x) ** 0.5)
            if space == "layer4":
                x = torch.cat([net(self.images).detach() for net in self.nets], 1)
                rows.append(x / x.square().mean().sqrt() / len(x) ** 0.5)
            x = torch.cat(rows)
            targets = []
            for own, net in zip(x.chunk(2, 1), self.nets):
                outputs = [own] if space == "layer4" else []
                for name in readers:
                    W = net.get_submodule(name).weight
                    outputs.append(own @ W.detach().movedim(1, -1).flatten(0, -2).T)
                targets += [y / y.square().sum().sqrt() for y in outputs]
            self.chosen[space] = sorted(best_units(x, torch.cat(targets, 1), x.shape[1] // 2))
        return self.chosen[space]

    def written(self, name: str) -> list[int]:
        if name.startswith("conv1"):
            following = {"conv1.0": ["conv1.3"], "conv1.3": ["conv1.6"]}
            first = ["layer1.0.conv1", "layer1.0.downsample.1"]
            return self.units(name, following.get(name, first))
        stage = int(name[5])
        if name.endswith("conv1"):
            return self.units(name, [f"layer{stage}.0.conv2"])
        later = [f"layer{stage + 1}.0.conv1", f"layer{stage + 1}.0.downsample.1"]
        return self.units(f"layer{stage}", later if stage < 4 else [])

    def layer(self, name: str, end: str | None = None) -> None:
        module, units = self.net.get_submodule(name), self.written(name)
        sources = [net.get_submodule(name) for net in self.nets]
        if name == "conv1.0":
            module.weight.data = torch.cat([m.weight for m in sources]).detach()[units]
            module.bias.data = torch.cat([m.bias for m in sources]).detach()[units]
            return
        x = self.seen(self.net, name, "input")
        own = torch.cat([self.seen(net, name, "input") for net in self.nets], 1)
        prior = torch.zeros(own.shape[1], x.shape[1]).double()
        before = self.read(name)
        prior[before, torch.arange(len(before))] = 1
        U = _ridge(x.movedim(1, -1).flatten(0, -2), own.movedim(1, -1).flatten(0, -2), prior, False)[0]
        size = own.shape[1] // 2
        pairs = zip(sources, (U[:size], U[size:]))
        W = torch.cat([torch.einsum("oikl,ij->ojkl", m.weight.detach(), own) for m, own in pairs])[units]
        y = torch.cat([self.seen(net, name, "output") for net in self.nets], 1)[:, units]
        rows = F.unfold(x, module.kernel_size, 1, module.padding, module.stride).mT.flatten(0, 1)
        fit, a = _ridge(rows, y.flatten(2).mT.flatten(0, 1), W.flatten(1), True)
        if end is not None:
            sums = torch.cat([self.seen(net, end, "input") for net in self.nets], 1)[:, units]
            missing = sums - y - self.seen(self.net, end, "input")
            more, b = _ridge(rows, missing.flatten(2).mT.flatten(0, 1), torch.zeros_like(fit), True)
            fit, a = fit + more, a + b
        module.weight.data, module.bias.data = fit.reshape(W.shape), a

    def read(self, name: str) -> list[int]:
        if name.startswith("conv1"):
            return self.chosen[{"conv1.3": "conv1.0", "conv1.6": "conv1.3"}[name]]
        stage = int(name[5])
        if name.endswith("conv2"):
            return self.chosen[f"layer{stage}.0.conv1"]
        return self.chosen["conv1.6" if stage == 1 else f"layer{stage - 1}"]


def _ridge(x: Tensor, y: Tensor, prior: Tensor, intercept: bool) -> tuple[Tensor, Tensor]:
    """B [q, p] and a [q]: ridge 1e-3 of the mean variance towards `prior`, by the normal equations."""
    mx, my = (x.mean(0), y.mean(0)) if intercept else (torch.zeros(x.shape[1]).double(), torch.zeros(1).double())
    square = (x - mx).T @ (x - mx) / len(x)
    ridge = 1e-3 * square.diagonal().mean() * torch.eye(len(square)).double()
    B = torch.linalg.solve(square + ridge, (x - mx).T @ (y - my) / len(x) + ridge @ prior.T).T
    return B, my - B @ mx
