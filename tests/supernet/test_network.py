"""The ways of the SuperNet to fold: single tensors, stacked by kind, and inside activation checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.kd import StudentNetwork
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import PreparedFold, fold
from fsmerge_cli.supernet.groups import group
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.teachers import network
from tests.supernet.test_fold import random_maps
from tests.support.sources import mlp_source
from tests.support.vits import VARIANTS, mark_full, vit_source


def pair(variant: str, **options: int) -> tuple[Plan, list[Source]]:
    sources = [vit_source(variant, seed, **options) for seed in (1, 2)]
    return compile_plan(sources), sources


def images() -> torch.Tensor:
    return torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def double(source: Source) -> dict[str, torch.Tensor]:
    return {n: t.double() if t.is_floating_point() else t for n, t in source.weights.items()}


def step(student: Student) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    student.zero_grad(set_to_none=True)
    features = student(images())
    sum(student.project(features, i).sin().sum() for i in range(2)).backward()
    gradients = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    return features.detach(), gradients


@pytest.mark.parametrize("structure", ["low_rank", "full", "heads"])
@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_a_batched_fold_equals_the_fold_of_single_tensors(variant: str, structure: str) -> None:
    plan, sources = pair(variant)
    maps = random_maps(plan, sources, structure)
    weights = [double(s) for s in sources]
    prepared = PreparedFold(plan, weights, "cpu", batched=True)
    folded = prepared(maps.stacked(), maps.units())
    expected = fold(plan, maps, weights)
    assert folded.keys() == expected.keys()
    torch.testing.assert_close(folded, expected)


def test_tensors_of_one_kind_form_one_group_and_their_maps_one_stack() -> None:
    plan, sources = pair("class token", depth=5)
    weights = [s.weights for s in sources]
    sizes = [len(g.names) for g in group(plan, weights)]
    assert sorted(sizes) == [1] * 4 + [5] * 8  # embedding, its bias, two tables; weights and biases of a block
    maps = random_maps(plan, sources, "low_rank")
    # Per source: M of embedding, qkv, proj, fc1, fc2; U of qkv, proj, fc1, fc2 and of the features; three fields.
    assert len([n for n, _ in maps.named_parameters() if "unit:" not in n]) <= 2 * 3 * (7 + 5)
    for found in group(plan, weights):
        selected = maps.stacked().select("M", found.writes, 1)
        single = [maps.write(port, 1).tensors() for port in found.writes]
        for name, tensor in selected.tensors().items():
            assert torch.equal(tensor, torch.stack([one[name] for one in single]))


def test_maps_that_are_not_adjacent_in_their_stack_can_be_selected() -> None:
    sources = [mlp_source(f"s{i}", [6, 6, 6], i) for i in range(2)]
    plan = compile_plan(sources)
    maps = random_maps(plan, sources, "full")
    ports = plan.writes[::-1]
    selected = maps.stacked().select("M", ports, 0).tensors()["matrix"]
    assert torch.equal(selected, torch.stack([maps.write(port, 0).dense() for port in ports]))


@pytest.mark.full
@pytest.mark.parametrize("structure", ["low_rank", "full", "heads"])
@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_checkpointing_changes_neither_features_nor_gradients(variant: str, structure: str) -> None:
    plan, sources = pair(variant)
    maps, weights = random_maps(plan, sources, structure), [double(s) for s in sources]
    plain = step(SuperNet(plan, maps, weights))
    again = step(SuperNet(plan, maps, weights, Hardware(checkpointing=True)))
    assert plain[1].keys() == again[1].keys() == dict(maps.named_parameters(prefix="maps")).keys()
    torch.testing.assert_close(again, plain)


def test_two_forward_passes_before_one_backward_pass_have_the_same_gradients() -> None:
    plan, sources = pair("class token")
    weights = [double(s) for s in sources]
    gradients = []
    for checkpointing in (False, True):
        maps = random_maps(plan, sources, "low_rank")
        supernet = SuperNet(plan, maps, weights, Hardware(checkpointing=checkpointing))
        (supernet(images()).sin().sum() + supernet(images().flip(0) / 2).cos().sum()).backward()
        gradients.append({n: p.grad for n, p in maps.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_functional_call_around_a_checkpoint_has_wrong_gradients() -> None:
    """The reason to fold and swap inside the checkpoint: outside, the gradients are those of other weights."""
    plan, sources = pair("class token")
    maps, weights = random_maps(plan, sources, "low_rank"), [double(s) for s in sources]
    expected = step(SuperNet(plan, maps, weights))
    naive = network(Source(**{**vars(sources[0]), "weights": weights[0]}))
    naive.requires_grad_(True)
    for block in naive.get_submodule("blocks").children():
        forward = block.forward
        block.forward = lambda x, forward=forward, **kw: checkpoint(forward, x, use_reentrant=False, **kw)
    maps.zero_grad(set_to_none=True)
    features = functional_call(naive, fold(plan, maps, weights), (images(),))
    torch.testing.assert_close(features.detach(), expected[0])
    sum(maps.read(plan.features, i)(features).sin().sum() for i in range(2)).backward()
    found: Mapping[str, torch.Tensor] = {
        f"maps.{n}": p.grad for n, p in maps.named_parameters() if p.grad is not None
    }
    assert not all(torch.allclose(g, expected[1][n]) for n, g in found.items())


def test_kd_has_the_same_gradients_and_names_with_checkpointing(make_problem: Callable[..., Problem]) -> None:
    sources = [vit_source("class token", seed) for seed in (1, 2)]
    results = []
    for checkpointing in (False, True):
        problem = make_problem(sources, hardware=Hardware(checkpointing=checkpointing))
        student = StudentNetwork(problem, "first", "linear").double()
        assert set(student.network.state_dict()) == set(problem.plan.roles)
        results.append(step(student))
    torch.testing.assert_close(results[0], results[1])


def test_checkpointing_saves_less_for_the_backward_pass() -> None:
    plan, sources = pair("class token", depth=6, embed_dim=48)
    maps = start_maps(plan, [s.weights for s in sources], "low_rank", "first", 2)
    saved = {}
    for checkpointing in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            SuperNet(plan, maps, [s.weights for s in sources], Hardware(checkpointing=checkpointing))(
                images().float()
            )
        saved[checkpointing] = sum(sizes)
    assert saved[True] < saved[False] / 4


class _Operations(TorchDispatchMode):
    """Records the name of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_attention_stays_fused_with_folded_weights() -> None:
    plan, sources = pair("class token")
    maps = start_maps(plan, [s.weights for s in sources], "low_rank", "first", 2)
    for hardware in (Hardware(), Hardware(checkpointing=True)):
        with _Operations() as operations:
            SuperNet(plan, maps, [s.weights for s in sources], hardware)(images().float()).sum().backward()
        assert any("scaled_dot_product" in name for name in operations.seen)
        assert "_softmax" not in operations.seen
