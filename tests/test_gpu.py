"""Tests on a GPU: the same results as on the CPU, and a whole merge with every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import merge
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data.draw import Targets
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.supernet.fold import PreparedFold, fold
from fsmerge_cli.training import teacher_group
from fsmerge_cli.training.optimizers import orthogonalised
from tests.supernet.test_fold import random_maps
from tests.supernet.test_network import double, pair
from tests.support.sources import distilling, folding
from tests.support.vits import vit_source

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

CUDA = torch.device("cuda")


@pytest.mark.parametrize("structure", ["diagonal", "low_rank", "full", "heads"])
def test_a_fold_on_the_gpu_equals_that_on_the_cpu(structure: str) -> None:
    plan, sources = pair("class token")
    maps = random_maps(plan, sources, structure)
    weights = [double(s) for s in sources]
    expected = {n: t.clone() for n, t in fold(plan, maps, weights).items()}  # the maps themselves move
    maps = maps.to(CUDA)
    compiled = Hardware(device="cuda", compile=True).compiled
    for options in (
        {},
        {"maps": maps.stacked()},
        {"maps": maps.stacked(), "compiled": compiled},
        {"batched": False},
    ):
        prepared = PreparedFold(plan, weights, CUDA, **{"batched": True, **options})
        folded = prepared(maps.stacked(), maps.units())
        torch.testing.assert_close({n: t.cpu() for n, t in folded.items()}, expected)


@pytest.mark.parametrize(
    "method", [folding(steps=8), folding(steps=8, maps="low_rank", mixup=0.5), distilling(steps=8)]
)
@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"features": "live"}, {"graphs": True}])
def test_a_training_in_fp32_equals_that_on_the_cpu(
    make_problem: Callable[..., Problem], method: Trained, options: dict[str, Any]
) -> None:
    problem = make_problem([vit_source("class token", seed) for seed in (1, 2)], per_task=8)
    expected = method.fit(problem)
    hardware = Hardware(device="cuda", precision="fp32", **options)
    with hardware.session() as device:
        found = method.fit(replace(problem, device=device, hardware=hardware))
    assert found.trace.loss == pytest.approx(expected.trace.loss, rel=1e-3)
    for name, tensor in expected.weights.items():
        # The gradient of the bias of the keys is rounding error, which Adam scales to full steps.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(found.weights[name].cpu(), tensor, atol=5e-4, rtol=1e-2)


@pytest.mark.parametrize("method", [folding(steps=8, maps="low_rank"), distilling(steps=8)])
def test_cuda_graphs_are_recorded_and_replayed(
    make_problem: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch, method: Trained
) -> None:
    replays, notes = [], []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda own: (replays.append(own), replay(own))[1])
    problem = make_problem([vit_source("class token", seed) for seed in (1, 2)], per_task=8)
    method = replace(method, mixup=0.5, targets="all", batch_size=8)
    losses = []
    for graphs in (False, True):
        hardware = Hardware(device="cuda", precision="fp32", graphs=graphs)
        with hardware.session() as device:
            given = replace(problem, device=device, hardware=hardware, progress=lambda e: notes.append(e.phase))
            losses.append(method.fit(given).trace.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len({id(graph) for graph in replays}) == 3  # teachers; forward and backward pass of the student
    assert not [note for note in notes if "graphs" in note]


@pytest.mark.parametrize("small", [0.0, 5e11], ids=["one by one", "batched"])
@pytest.mark.parametrize("targets", ["own", "all"])
def test_teachers_on_a_stream_of_their_own_equal_those_on_the_cpu(
    make_problem: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch, targets: Targets, small: float
) -> None:
    monkeypatch.setattr(teacher_group, "SMALL_PASS", small)
    monkeypatch.setattr(teacher_group, "MAX_PADDING", 2.0)
    problem = make_problem([vit_source("class token", seed) for seed in (1, 2)], per_task=8)
    method = distilling(steps=8, targets=targets, mixup=0.5, batch_size=8)
    expected = method.fit(problem).trace.loss
    hardware = Hardware(device="cuda", precision="fp32")
    with hardware.session() as device:
        found = method.fit(replace(problem, device=device, hardware=hardware)).trace.loss
    assert found == pytest.approx(expected, rel=1e-3)


def test_orthogonal_factors_on_the_gpu_equal_those_on_the_cpu_up_to_bf16() -> None:
    matrices = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        orthogonalised(matrices.to(CUDA)).cpu(), orthogonalised(matrices), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_method_merges_digits_on_the_gpu_and_the_certificates_hold(name: str, tmp_path: Path) -> None:
    method = {"name": name, **({"steps": 60} if issubclass(METHODS[name], Trained) else {})}
    result = merge("digits_mlp_pair", method=method, hardware="gpu", output=tmp_path / "out")
    evaluation = result.evaluation()
    assert evaluation["provenance"]["device"].startswith("cuda")
    assert evaluation["rows"]["ensemble"]["mean_top1"] > 0.95
    assert evaluation["rows"]["merged"]["mean_top1"] > 0.4  # five classes each
    assert (tmp_path / "out/merged/model.safetensors").is_file()


def test_deterministic_operations_are_reproducible_on_the_gpu() -> None:
    options = {"device": "cuda", "deterministic": True}
    method = {"name": "fs_merge", "steps": 20}
    first, second = (merge("digits_mlp_pair", method=method, hardware=options).solution.weights for _ in range(2))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=0, rtol=0)
