from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.cli import main

pytestmark = pytest.mark.full

RUNS = {
    "fs_merge": ["method=fs_merge", "method.maps=low_rank", "method.steps=20"],
    "kd": ["method=kd", "method.start=random", "method.steps=20"],
}
IMAGES = ["data.images_per_task=40", "data.augment=shift", "data.views=1"]
COMMON = ["merge", "+models=digits_mlp_pair", "hardware=cpu", "hardware.threads=1", *IMAGES]
FILES = ("merged/model.safetensors", "merged/heads.safetensors", "merged/config.json", "config.yaml")


def content(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bytes of the files, and evaluation.json without what time and place may change."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    seconds = evaluation.pop("cost")["seconds"]
    assert set(seconds) == {"sources", "data", "fit", "evaluate", "certify"}
    evaluation.pop("provenance")
    return {name: (folder / name).read_bytes() for name in FILES}, evaluation


@pytest.mark.parametrize("method", RUNS)
def test_the_same_command_gives_the_same_bytes_in_any_folder(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, place in enumerate(("here", "here", "far/away")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        torch.manual_seed(number)  # the global generator must not matter
        assert main([*COMMON, *RUNS[method], f"output.dir=out{number}"]) == 0
        found.append(content(tmp_path / place / f"out{number}"))
    assert found[0] == found[1] == found[2]


@pytest.mark.full
@pytest.mark.parametrize("method", RUNS)
def test_another_seed_gives_other_bytes(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        assert main([*COMMON, *RUNS[method], f"seed={seed}", f"output.dir=out{seed}"]) == 0
    one, two = (content(tmp_path / f"out{seed}")[0] for seed in (0, 1))
    assert one["merged/model.safetensors"] != two["merged/model.safetensors"]
    assert one["merged/heads.safetensors"] != two["merged/heads.safetensors"]


@pytest.mark.full
def test_another_process_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*COMMON, *RUNS["fs_merge"]]
    assert main([*arguments, "output.dir=one"]) == 0
    command = [sys.executable, "-m", "fsmerge_cli", *arguments, "output.dir=two"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.full
def test_loader_workers_change_nothing(tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        assert main([*COMMON, *RUNS["kd"], f"hardware.workers={workers}", f"output.dir={out}"]) == 0
        files, evaluation = content(out)
        files.pop("config.yaml")  # states their number
        evaluation.pop("config")
        found.append((files, evaluation))
    assert found[0] == found[1]
