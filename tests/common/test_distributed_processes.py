"""Runs of two processes give the results of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsmerge_cli.cli import main
from fsmerge_cli.common.distributed import World
from tests.support import two_processes
from tests.support.paths import REPOSITORY

TOLERANCE = 1e-5
"""Relative and absolute, for weights and losses: the summation order differs (2e-6 was measured), and Muon
amplifies small singular values including their rounding errors."""
KEY_BIASES = 1e-4
"""For the key biases of attention: their gradient is zero, and Adam turns its rounding errors into full steps."""

PAIR = ["merge", "+models=digits_mlp_pair", "method.steps=20", "data.images_per_task=40"]
TWO = ["hardware=multi_gpu", "hardware.device=cpu", "hardware.precision=fp32", "hardware.workers=0"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of two processes, one file each."""
    folder = tmp_path_factory.mktemp("both")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_processes.work, (port, str(folder)), nprocs=2)
    return folder


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONWARNINGS": "error::FutureWarning:fsmerge_cli", "COLUMNS": "200"}
    return subprocess.run(
        [*command, "-m", "fsmerge_cli", *arguments],
        cwd=folder,
        env={**environment, "FSMERGE_CACHE": str(folder / "cache"), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.full
@pytest.mark.parametrize("name", two_processes.TRAINED)
def test_two_processes_give_the_weights_of_one(name: str, both: Path) -> None:
    first, second = (torch.load(both / f"{rank}.pt")[name] for rank in (0, 1))
    expected = two_processes.fitted(name, World())
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(first[key], second[key])
        if key == "chosen":  # the last steps are nearly equal, so the chosen step may differ
            continue
        near = KEY_BIASES if name == "vit kd" and key.endswith("qkv.bias") else TOLERANCE
        torch.testing.assert_close(first[key], value, rtol=near, atol=near, equal_nan=True)


@pytest.mark.full
def test_an_error_of_one_process_stops_all_of_them(both: Path) -> None:
    messages = [(both / f"{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert messages == [
        ["ConfigError: no", "RuntimeError: boom", "UserError: no", "FsmergeError: process 1 failed: boom"],
        ["UserError: no", "FsmergeError: process 0 failed: boom", "ConfigError: no", "RuntimeError: boom"],
    ]


@pytest.mark.full
def test_an_occupied_output_folder_stops_all_processes_and_is_reported_once(both: Path) -> None:
    messages = [(both / f"{rank}.err").read_text() for rank in (0, 1)]
    assert messages == [
        f"2 fsmerge: error: {both}/0.pt is a file, not a folder. Choose another output.dir=...\n",
        "0 ",
    ]


@pytest.mark.full
def test_torchrun_writes_one_folder_one_log_and_trains_the_sources_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [f"++models.sources.{i}.recipe.steps=30" for i in (0, 1)]
    ran = torchrun(tmp_path, *PAIR, *recipes, *TWO, "output.dir=two")
    assert ran.returncode == 0, ran.stderr
    shown = [line.partition(":")[0] for line in ran.stderr.splitlines()]
    phases = ["train source low", "train source high", "read test images", "read images"]
    phases += ["solve", "capture features", "train", "train"]
    rows = [f"evaluate {row}" for row in ("sources", "average", "merged")]
    assert shown == [*phases, "hash test images", *rows, "compare layers", "certify", "write"]
    assert ran.stdout.count("merged model: two/merged") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "two"]
    assert json.loads((tmp_path / "two/evaluation.json").read_text())["provenance"]["processes"] == 2

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))
    assert main([*PAIR, *recipes, "hardware=cpu", "output.dir=one"]) == 0
    for file in ("model", "heads"):
        one, two = (load_file(tmp_path / run / f"merged/{file}.safetensors") for run in ("one", "two"))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
def test_the_submitit_launcher_starts_the_processes_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    job = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=2"]
    assert main(["merge", "--multirun", *PAIR[1:], *TWO, *job, "hydra.sweep.dir=sweep"]) == 0
    assert capsys.readouterr().err == ""  # the output of a job is in its log
    (evaluation,) = tmp_path.glob("outputs/*/evaluation.json")
    assert json.loads(evaluation.read_text())["provenance"]["processes"] == 2
    assert len([*tmp_path.glob("sweep/jobs/*.json")]) == 1
