"""The tables of convolutional networks: sources, runs without a line, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fsmerge_cli import load_source
from fsmerge_cli.training.teachers import network
from scripts.convnets import run, sources
from tests.support.benchmark_rows import row


def test_the_runs_are_those_without_a_line_and_notes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "fsmerge", lambda call: calls.append(call) or 0)
    monkeypatch.setattr(
        run,
        "row",
        lambda folder, group, images, name, overrides: {
            **row(int(str(folder)[-1]), name, {"digits": [1, 0], "capitals": [1, 1]}),
            **{"group": group, "images": images, "overrides": list(overrides)},
        },
    )
    monkeypatch.setattr("sys.argv", ["convnets", "--methods=pleas_2,kd", "--seeds=0,1"])
    run.main()
    assert [(c[4:-4], c[-4]) for c in calls] == [
        (["method=pleas", "method.budget_flops=2"], "seed=0"),
        (["method=kd", "method.budget=fast"], "seed=0"),
        (["method=pleas", "method.budget_flops=2"], "seed=1"),
    ]
    page = tmp_path / "docs/results/convnets.md"
    page.write_text(page.read_text() + "A note.\n")
    run.main()
    assert len(calls) == 3
    text = page.read_text()
    assert text.startswith("# Merging convolutional networks")
    assert "| pleas_2 | 2 |" in text
    assert text.endswith("## What was expected, and what came\n\nA note.\n")


def test_a_run_on_photographs_reads_the_stored_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ensure", lambda *_: None)
    monkeypatch.setattr(
        run, "archive", lambda root, folder, task, split, size, most: f"{task}-{split}-{size}-{most}"
    )
    monkeypatch.setattr(run, "fsmerge", lambda call: calls.append(call) or 1)
    monkeypatch.setattr("sys.argv", ["convnets", "--groups=cifar10_twice", "--root=data", "--methods=regmean"])
    with pytest.raises(SystemExit, match="exit code 1"):
        run.main()
    names = ("cifar10_a", "cifar10_b")
    entries = [{"name": own, "checkpoint": str(sources.SOURCES / f"{own}_resnet20_w1")} for own in names]
    data = {
        own: {"name": "tensors", "train": "cifar10-train-64-5000", "test": "cifar10-test-64-None"} for own in names
    }
    models, kind, tasks = calls[0][2:5]
    assert yaml.safe_load(models.partition("=")[2]) == entries
    assert kind == "data=per_task"
    assert yaml.safe_load(tasks.partition("=")[2]) == data


@pytest.mark.full
def test_a_source_is_trained_and_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, random = tmp_path / "data", np.random.default_rng(0)
    (root / "cifar10").mkdir(parents=True)
    labels = np.arange(40) % 10
    images = (20 * labels[:, None, None, None] + random.integers(0, 9, (40, 32, 32, 3))).astype(np.uint8)
    for split in ("train", "test"):
        np.savez(root / "cifar10" / f"{split}.npz", images=images, labels=labels)
    for name, value in {"SOURCES": tmp_path / "sources", "EPOCHS": 1, "BATCH": 5}.items():
        monkeypatch.setattr(sources, name, value)
    folder = sources.ensure("last_five", 1, root, tmp_path / "work")
    facts = json.loads((folder / "training.json").read_text())
    assert facts["steps"] == 4
    source = load_source(folder)
    assert source.head.labels == ("dog", "frog", "horse", "ship", "truck")
    shown = np.stack([np.asarray(Image.fromarray(x).resize((64, 64), Image.Resampling.BICUBIC)) for x in images])
    pixels = torch.from_numpy(shown[labels >= 5]).permute(0, 3, 1, 2).float() / 255
    logits = source.head(network(source)(pixels))
    assert logits.argmax(1).eq(torch.from_numpy(labels[labels >= 5] - 5)).float().mean().item() == pytest.approx(
        facts["top1"] / 100, abs=0.11
    )
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert sources.ensure("last_five", 1, root, tmp_path / "work") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_every_training_image_is_shifted_by_itself() -> None:
    images = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).reshape(2, 3, 32, 32) + 1
    for _ in range(20):
        found = sources.augmented(images)
        for own, shown in zip(images, found):
            padded = torch.nn.functional.pad(own, (4, 4, 4, 4))
            crops = [c for y in range(9) for x in range(9) for c in [padded[:, y : y + 32, x : x + 32]]]
            assert any(torch.equal(shown, c) or torch.equal(shown, c.flip(2)) for c in crops)
