"""Cost estimates of a merge: trainable parameters, operations, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.alignment.matching import similarities
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.runs import estimate
from fsmerge_cli.supernet.map_set import start_maps
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source

pytestmark = pytest.mark.full


@pytest.mark.parametrize("structure", ["diagonal", "low_rank", "full", "heads"])
def test_trainable_parameters_are_those_of_the_maps(structure: Any) -> None:
    sources = [vit_source("class token", seed) for seed in (1, 2)]
    plan = compile_plan(sources)
    maps = start_maps(plan, [s.weights for s in sources], structure, "first", 3)
    expected = sum(p.numel() for p in maps.parameters())
    method = FSMerge(name="fs_merge", maps=structure, rank=3)
    assert estimate.trainable_parameters(plan, method, estimate.measure(plan)) == expected


def test_the_operations_of_an_mlp_are_two_per_weight() -> None:
    plan = compile_plan([mlp_source("a", [8, 6], 1), mlp_source("b", [8, 6], 2)])
    network = estimate.measure(plan)
    assert network.operations == 2 * (16 * 8 + 8 * 6)
    assert network.parameters == 16 * 8 + 8 + 8 * 6 + 6
    assert network.widest == 4 * (16 + 16)


def test_a_matched_start_costs_permuted_copies_and_a_forward_pass_of_all_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = [mlp_source(name, [8, 6], seed) for seed, name in enumerate("abc")]
    plan, work = compile_plan(sources), estimate.Workload(train=(50, 50, 50), test=())
    network = estimate.measure(plan)
    monkeypatch.setattr(estimate, "resident", lambda: 1000)
    matched, average = (FSMerge(start=start) for start in ("matched", "average"))  # type: ignore[arg-type]

    def memory(method: FSMerge) -> int:
        return estimate.peak_memory(plan, [1, 1, 1], method, Hardware(), work, network)

    def operations(method: FSMerge) -> float:
        return estimate.operations(plan, method, work, network)

    assert memory(matched) - memory(average) == 2 * 4 * network.parameters
    assert operations(matched) - operations(average) == 3 * 150 * network.operations
    assert not estimate.permutes_sources(compile_plan(sources, (4, 4)), matched, 150)


@pytest.mark.parametrize("first", [True, False])
def test_the_memory_of_the_statistics_includes_their_result(first: bool) -> None:
    sources = [vit_source("class token", seed) for seed in (1, 2, 3)]
    plan = compile_plan(sources)
    found = similarities(Problem(plan, sources, random_images(3, 4, (2, 8, 8))), first=first)
    estimated = estimate._statistics(plan, whole=not first)
    assert sum(matrix.nbytes for matrix in found.values()) < estimated
    assert estimated == (1 if first else 3) * estimate._statistics(plan, whole=False)


@pytest.mark.full
@pytest.mark.parametrize("method", [pytest.param("average", marks=pytest.mark.slow), "kd"])
def test_memory_is_within_30_per_cent_of_a_run(method: str, tmp_path: Path) -> None:
    options = ["+models=digits_mlp_pair", "hardware=cpu", f"method={method}"]
    options += ["method.steps=20"] if method == "kd" else []  # more steps hold no more memory
    code = (
        "import sys, torch\nfrom fsmerge_cli.cli import main\ncode = main(sys.argv[1:])\n"
        "from fsmerge_cli.common.hardware import peak_memory\n"
        "sys.stderr.write(f'peak {peak_memory(torch.device(\"cpu\"))}')\nsys.exit(code)"
    )

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    predicted = json.loads(ran("check", *options, "--json").stdout)["memory"]
    peak = int(ran("merge", *options).stderr.rpartition("peak ")[2])
    assert 0.7 < predicted / peak < 1.3
