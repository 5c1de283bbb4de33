from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsmerge_cli.common.cache import feature_folder
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Event, silent
from fsmerge_cli.methods import Problem
from fsmerge_cli.models.source import Source
from fsmerge_cli.training import teachers
from fsmerge_cli.training.teachers import Targets, TeacherTargets, capture, network
from tests.support.sources import distilling, folding, mlp_source
from tests.support.vits import vit_source

CPU = torch.device("cpu")
Make = Callable[..., Problem]
BATCH = 5  # divides none of the sizes here


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))


def captured(problem: Problem, targets: Targets = "own", **options: Any) -> tuple[TeacherTargets, ...]:
    hardware = Hardware(**{"device": "cpu", "eval_batch": BATCH, **options})
    return capture(problem.sources, problem.images, targets, hardware, CPU, problem.progress)


KINDS: dict[str, Callable[[int], Source]] = {
    "mlp": lambda seed: mlp_source(f"s{seed}", [8, 8], seed),
    "vit": lambda seed: vit_source("class token", seed),
}


@pytest.mark.parametrize("targets", ["own", "all"])
@pytest.mark.parametrize("kind", ["mlp", pytest.param("vit", marks=pytest.mark.full)])
def test_features_on_disk_in_memory_and_live_equal_those_of_the_network(
    make_problem: Make, kind: str, targets: Targets
) -> None:
    problem = make_problem([KINDS[kind](seed) for seed in (1, 2)], held=3)
    disk, again, memory, live = (
        captured(problem, targets, features=kept) for kept in ("disk", "disk", "memory", "live")
    )
    for i, source in enumerate(problem.sources):
        own = problem.images.task == i
        mask = own | (targets == "all")
        rows = mask.nonzero().flatten().flip(0)
        expected = network(source)(problem.images.images[rows])
        torch.testing.assert_close(memory[i].at(rows), expected)
        assert torch.equal(disk[i].at(rows), memory[i].at(rows))
        assert torch.equal(again[i].at(rows), memory[i].at(rows))
        torch.testing.assert_close(live[i].at(rows), memory[i].at(rows))
        train = problem.images.train[mask[problem.images.train]]
        variance = memory[i].at(train).double().var(0, correction=0).mean().item()
        assert memory[i].variance == disk[i].variance == again[i].variance == pytest.approx(variance, rel=1e-12)
        assert live[i].variance == pytest.approx(variance, rel=1e-5)
        assert all(torch.equal(kept[i].mask, mask) for kept in (disk, memory, live))


@pytest.mark.parametrize("method", [folding(steps=6), distilling(steps=6)], ids=["fs_merge", "kd"])
def test_a_training_is_the_same_with_features_on_disk_in_memory_and_live(make_problem: Make, method: Any) -> None:
    problem = make_problem()
    loss = {
        kept: method.fit(replace(problem, hardware=Hardware("cpu", features=kept))).trace.loss
        for kept in ("disk", "memory", "live")
    }
    assert loss["disk"] == loss["memory"]
    assert loss["live"] == pytest.approx(loss["memory"], rel=1e-4)


def test_a_second_run_does_not_run_the_teachers(make_problem: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()
    first = captured(problem)
    monkeypatch.setattr(teachers, "network", None)
    rows = torch.arange(12)
    assert torch.equal(captured(problem)[0].at(rows), first[0].at(rows))


@pytest.mark.parametrize("kept", ["memory", "live"])
def test_only_disk_writes_files(make_problem: Make, kept: str) -> None:
    captured(make_problem(), features=kept)
    assert not feature_folder().exists()


CHANGED: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "weights under the same file's hash": lambda p: {
        "sources": [replace(s, weights={n: t + 1 for n, t in s.weights.items()}) for s in p.sources]
    },
    "architecture": lambda p: {
        "sources": [replace(s, arch=replace(s.arch, activation="tanh")) for s in p.sources]
    },
    "an image": lambda p: {"images": replace(p.images, images=p.images.images + 1e-3)},
    "fewer images": lambda p: {"images": p.images.regroup([None, 1])},
}


@pytest.mark.parametrize("what", CHANGED)
def test_other_features_have_another_cache_key(make_problem: Make, what: str) -> None:
    problem = make_problem()
    captured(problem, "all")
    names = set(feature_folder().iterdir())
    changed = replace(problem, **CHANGED[what](problem))
    rows = torch.arange(len(changed.images))
    for kept, expected in zip(captured(changed, "all"), captured(changed, "all", features="memory")):
        assert torch.equal(kept.at(rows), expected.at(rows))
    assert len(set(feature_folder().iterdir()) - names) == 2


@pytest.mark.parametrize("options", [{"eval_batch": 7}, {"precision": "bf16"}])
def test_options_that_change_the_last_bit_are_part_of_the_cache_key(
    make_problem: Make, options: dict[str, Any]
) -> None:
    problem = make_problem()
    captured(problem)
    captured(problem, **options)
    assert len(list(feature_folder().iterdir())) == 4


def test_the_cache_key_does_not_depend_on_other_tasks(make_problem: Make) -> None:
    """The same images of a task have the same cache entry, whatever the other tasks are."""
    problem = make_problem()
    captured(problem)
    names = set(feature_folder().iterdir())
    captured(replace(problem, images=problem.images.regroup([0, None])))
    assert set(feature_folder().iterdir()) == names


@pytest.mark.parametrize("kept", ["disk", "memory", "live"])
def test_targets_are_fp32_unless_the_precision_is_bf16(make_problem: Make, kept: str) -> None:
    problem = make_problem()
    rows = torch.arange(12)
    found = {}
    for precision in ("auto", "fp32", "bf16"):
        own = captured(problem, features=kept, precision=precision)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as in a training step
            found[precision] = own.at(rows)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert torch.equal(found["auto"], found["fp32"])
    assert 0 < (found["bf16"] - found["fp32"]).abs().max() < 0.05


def test_only_one_network_exists_at_a_time(make_problem: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def build(source: Source, device: torch.device) -> nn.Module:
        assert all(other() is None for other in alive)
        module = network(source, device)
        alive.append(weakref.ref(module))
        return module

    monkeypatch.setattr(teachers, "network", build)
    captured(make_problem([mlp_source(name, [8], i) for i, name in enumerate("abc")]), features="memory")
    assert len(alive) == 3


def test_without_a_writable_cache_the_features_are_kept_in_memory(
    make_problem: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "file"))
    events: list[Event] = []
    problem = make_problem(progress=events.append)
    rows = torch.arange(12)
    assert torch.equal(captured(problem)[0].at(rows), captured(problem, features="memory")[0].at(rows))
    phases = {event.phase for event in events} - {"capture features"}
    assert phases == {
        f"features are kept in memory: {tmp_path}/file/features cannot be written (Not a directory); "
        "set FSMERGE_CACHE=FOLDER to use another folder"
    }


@pytest.mark.parametrize("kept", ["disk", "memory", "live"])
def test_a_task_without_images(make_problem: Make, kept: str) -> None:
    problem = make_problem()
    problem = replace(problem, images=problem.images.regroup([0, None]), progress=silent)
    empty = captured(problem, features=kept)[1]
    assert not empty.mask.any()
    assert empty.variance == 1.0
