"""The model sets of public pretrained weights; random weights of the same shapes replace the hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import create_model

from fsmerge_cli.checkpoints.architecture import hub_name
from fsmerge_cli.checkpoints.files import hub_config
from fsmerge_cli.checkpoints.open import open_checkpoint
from fsmerge_cli.cli import main
from fsmerge_cli.common import presets
from fsmerge_cli.data import DATASETS
from fsmerge_cli.models.source_spec import SourceSpec

PAIRS = ["vit_b_pair", "vit_l_pair", "clip_vit_b_pair"]


@pytest.mark.parametrize("models", PAIRS)
def test_a_pair_lists_public_weights_and_uses_their_preprocessing_in_timm(models: str) -> None:
    for entry in presets.load("models", models)["sources"]:
        name = hub_name(SourceSpec(**entry))
        assert name is not None
        known = hub_config(name)
        assert known["hf_hub_id"]
        assert len(known["mean"]) == len(known["std"]) == 3
        assert entry["mean"] is entry["std"] is None


@pytest.mark.full
@pytest.mark.parametrize("models", PAIRS)
def test_missing_data_is_reported_in_one_sentence(
    models: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["merge", f"+models={models}"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: method=fs_merge needs unlabelled images and no data set is given. Pass "
        f"--images FOLDER (texts: data=text data.root=FOLDER), data=NAME ({', '.join(sorted(DATASETS))}), or "
        "method=average.\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_an_unreachable_hub_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    assert main(["merge", "+models=vit_b_pair", "method=average"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: source 'augreg': the hub cannot be reached for the weights "
        "'vit_base_patch16_224.augreg_in1k' (no route to the hub). "
        "Pass a local checkpoint instead: models.sources.N.checkpoint=PATH\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_read_from_disk_because_the_hub_does_not_answer_have_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("no route to the hub")

    name, small = "vit_tiny_patch16_224.augreg_in21k", {"img_size": 16, "depth": 1}
    made = create_model("vit_tiny_patch16_224", num_classes=3, **small)
    monkeypatch.setattr("timm.models.create_model", lambda *a, **k: made)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: "file")
    spec = SourceSpec("a", arch=name)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    assert open_checkpoint(spec).notes == (
        f"'a': the hub did not answer for {name} (no route to the hub), so the copy that was downloaded before is "
        "read",
    )
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: None)
    assert open_checkpoint(spec).notes == ()


def photographs(root: Path, tasks: list[str]) -> None:
    random = np.random.default_rng(0)
    for task in tasks:
        for split, size in (("train", (300, 220)), ("test", (250, 400))):
            (root / task / split).mkdir(parents=True)
            pixels = random.integers(0, 255, (50, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize(size).save(root / task / split / "one.jpg")


@pytest.mark.full
@pytest.mark.parametrize("depth", [1, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("models", "method"),
    [
        (
            "vit_b_pair",
            ["fs_merge", "method.maps=diagonal", "method.steps=1", "method.batch_size=2", "method.start=first"],
        ),
        ("clip_vit_b_pair", ["average"]),
    ],
)
def test_real_shapes_merge_from_local_checkpoints(
    models: str, method: list[str], depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fewer blocks in `make test`."""
    monkeypatch.chdir(tmp_path)
    entries = presets.load("models", models)["sources"]
    photographs(tmp_path / "images", [entry["name"] for entry in entries])
    arguments = ["merge", f"+models={models}", "data=folder", "data.root=images", "output.dir=out"]
    width = 512 if "clip" in models else 768
    for i, entry in enumerate(entries):
        name = str(hub_name(SourceSpec(**entry)))
        model = create_model(name.split(".")[0], num_classes=width, depth=depth)
        save_file(model.state_dict(), tmp_path / f"{i}.safetensors")
        if depth < 12:
            arch = f"{{family: vit, name: {name}, args: {{depth: {depth}}}}}"
            arguments.append(f"models.sources.{i}.arch={arch}")
        arguments.append(f"models.sources.{i}.checkpoint={tmp_path}/{i}.safetensors")
    assert main([*arguments, f"method={method[0]}", *method[1:]]) == 0
    evaluation = json.loads(Path("out/evaluation.json").read_text())
    errors = evaluation["rows"]["merged"]["feature_error"]
    assert errors.keys() == {entry["name"] for entry in entries}
    assert evaluation["rows"]["merged"]["tasks"] == {}  # the images have no labels
    assert evaluation["provenance"]["sources"][1]["origin"].endswith("1.safetensors")
    if method[0] == "fs_merge":
        assert evaluation["training"]["start_error"][entries[0]["name"]] < 1e-6
    merged = create_model("local-dir:out/merged", pretrained=True).eval()
    stored = load_file("out/merged/model.safetensors")
    state = merged.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[n], stored[n]) for n in stored)
    assert tuple(merged.pretrained_cfg["mean"]) == (0.0, 0.0, 0.0)
    assert merged.pretrained_cfg["crop_pct"] == (1.0 if "clip" in models else 0.9)
    assert merged(torch.rand(1, 3, 224, 224)).shape == (1, width)
