"""classifier/ is run by timm and transformers without this package, and decides as the merged model does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fsmerge_cli import merge
from fsmerge_cli.runs.classifier import why_no_classifier
from fsmerge_cli.runs.merged import load_merged
from tests.support.checks import write_entries
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

SCRIPT = """
import json, sys
import timm, torch
from safetensors.torch import load_file
from transformers import pipeline

for place in sys.argv[1:]:
    folder = place + "/run/classifier"
    pixels = load_file(place + "/pixels.safetensors")["pixels"]
    config = json.load(open(folder + "/config.json"))
    local = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    args = {**config["model_args"], "num_classes": config["num_classes"]}
    read = timm.create_model(config["architecture"], checkpoint_path=folder + "/model.safetensors", **args).eval()
    with torch.no_grad():
        logits = [model(pixels).tolist() for model in (local, read)]
    ranked = pipeline("image-classification", model=folder)(place + "/photo.png", top_k=6)
    found = {"logits": logits, "labels": config["label_names"], "ranked": ranked}
    json.dump(found, open(place + "/out.json", "w"))
assert not [name for name in sys.modules if name.startswith("fsmerge")]
"""


def photographs(root: Path, tasks: tuple[str, ...], count: int = 24) -> Path:
    random = np.random.default_rng(0)
    for task in tasks:
        (root / task).mkdir(parents=True)
        for n in range(count):
            pixels = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / task / f"{n}.png")
    return root


def merged(root: Path, variant: str, **options: Any) -> Path:
    sources = [vit_source(variant, seed, **options) for seed in (1, 2)]
    data = {"name": "folder", "root": str(photographs(root / "images", ("s1", "s2")))}
    merge(write_entries(root, *sources), method="average", data=data, output=root / "run")
    return root / "run"


VARIANTS = [("class token", 3), ("class token", 1), ("CLIP quick-GELU with projection", 3)]


@pytest.mark.full
def test_timm_and_a_pipeline_run_it_without_this_package(tmp_path: Path) -> None:
    """All variants in one process, whose imports take most of the time."""
    places = []
    for number, (variant, channels) in enumerate(VARIANTS):
        place = tmp_path / str(number)
        merged(place, variant, in_chans=channels)
        pixels = torch.rand(4, channels, 8, 8).expand(-1, 3, -1, -1).contiguous()
        save_file({"pixels": pixels}, place / "pixels.safetensors")
        Image.open(place / "images/s1/0.png").save(place / "photo.png")
        places.append(place)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, places)],
        cwd=tmp_path, env={**environment, "HF_HUB_OFFLINE": "1"}, check=True, timeout=120,
    )  # fmt: skip
    for place, (_, channels) in zip(places, VARIANTS):
        check_classifier(place, channels)


def check_classifier(place: Path, channels: int) -> None:
    """What timm and transformers computed in `place` is what the merged model computes."""
    model = load_merged(place / "run")
    found = json.loads((place / "out.json").read_text())
    with torch.no_grad():
        features = model.backbone(load_file(place / "pixels.safetensors")["pixels"][:, :channels])
        expected = torch.cat([head.joint_logits(features) for head in model.heads.values()], 1)
    for logits in found["logits"]:
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-4, atol=1e-4)
    assert found["labels"] == ["1-0", "1-1", "1-2", "2-0", "2-1", "2-2"]
    assert {entry["label"] for entry in found["ranked"]} == set(found["labels"])
    best = model.predict(place / "photo.png", top_k=6)
    assert [(own.label, round(own.probability, 3)) for own in best.top] == [
        (entry["label"], round(entry["score"], 3)) for entry in found["ranked"]
    ]


@pytest.mark.full
def test_temperatures_and_the_order_of_tasks_are_in_the_files(tmp_path: Path) -> None:
    run = merged(tmp_path, "class token", in_chans=3)
    evaluation = json.loads((run / "evaluation.json").read_text())
    heads = load_merged(run).heads
    assert list(heads) == ["s1", "s2"]
    stated = evaluation["rows"]["merged"]["joint_decision"]
    assert stated == {name: {"temperature": head.temperature, "shift": head.shift} for name, head in heads.items()}
    assert evaluation["certificates"]["classifier"]["status"] == "holds"


def test_why_there_is_no_classifier(tmp_path: Path) -> None:
    sources = [mlp_source(name, [8], seed) for seed, name in enumerate("ab")]
    found = merge(write_entries(tmp_path, *sources), method="average", output=tmp_path / "run")
    assert why_no_classifier(found.plan, found.heads) == "timm has no model of the family mlp"
    assert why_no_classifier(found.plan, {}) == "the sources have no classifier heads"
    assert not (tmp_path / "run/classifier").exists()
