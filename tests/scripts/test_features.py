"""The real check of features: its sources, the command of a run, probes and the page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from fsmerge_cli import load_source
from fsmerge_cli.training.teachers import network
from scripts.features import dinov2, run, sources
from scripts.features.page import write_page
from scripts.features.probes import labelled, probe_accuracy
from scripts.features.sources import NAMES

SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}


class Exported(nn.Module):
    """As in the package: a backbone of Hugging Face with position embeddings of its own size, and a decoder."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, nn.Linear(12, 1)

    def forward(self, pixels: torch.Tensor) -> Any:
        """The decoder on the patch tokens."""
        return self.decoder(self.backbone(pixel_values=pixels).last_hidden_state[:, 1:])


def test_matrices_without_names_are_found_by_their_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph like that of the package, written by hand: every matrix has lost its name."""
    onnx = pytest.importorskip("onnx")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(dinov2, "CONFIG", {**dinov2.CONFIG, **SMALL, "image_size": 28})
    monkeypatch.setattr(dinov2, "POSITIONS", 4)
    torch.manual_seed(0)
    config = {key: value for key, value in dinov2.CONFIG.items() if key not in ("architectures", "model_type")}
    model = Exported(transformers.Dinov2Model(transformers.Dinov2Config(**config))).eval()
    values, nodes, last = {}, [], ""
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        value = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        tensor.copy_(value)
        if "position_embeddings" in name:
            values |= {"onnx::Concat_1": value[:, :1], "onnx::Reshape_2": value[:, 1:]}
        elif name.endswith("weight") and value.ndim == 2 and "decoder" not in name:
            values[f"onnx::MatMul_{number}"] = value.T
            nodes.append(onnx.helper.make_node("MatMul", [last, f"onnx::MatMul_{number}"], [f"m{number}"]))
            nodes.append(onnx.helper.make_node("Add", [name[:-6] + "bias", f"m{number}"], [f"a{number}"]))
            last = f"a{number}"
        elif "mask_token" not in name:
            values[name] = value
    initial = [onnx.numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in values.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], initial)), tmp_path / "m.onnx")
    dinov2.write(tmp_path / "m.onnx", tmp_path / "short", 1)
    dinov2.write(tmp_path / "m.onnx", tmp_path / "folder", 2)
    assert json.loads((tmp_path / "short" / "config.json").read_text())["num_hidden_layers"] == 1
    assert {*load_file(tmp_path / "folder" / "model.safetensors")} - {
        *load_file(tmp_path / "short" / "model.safetensors")
    } == {name.removeprefix("backbone.") for name in model.state_dict() if ".layer.1." in name}
    source = load_source({"name": "a", "checkpoint": str(tmp_path / "folder"), "mean": [0.0], "std": [1.0]})
    pixels = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        expected = model.backbone(pixel_values=pixels).pooler_output
        torch.testing.assert_close(network(source)(pixels), expected, rtol=1e-4, atol=1e-4)


def test_a_run_is_one_command_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "fsmerge", lambda call: calls.append(call) or 0)
    monkeypatch.setattr(run, "entries", lambda *given: [{"name": name, "checkpoint": name} for name in NAMES])
    monkeypatch.setattr(run, "images", lambda root, work, split, labels: f"{split}-{labels}.npz")
    monkeypatch.setattr(run, "figures", lambda *given: {"sources": {}})
    given = argparse.Namespace(
        root=tmp_path, onnx=None, rows=tmp_path / "rows.jsonl", label="", overrides=[], reads="both"
    )
    for _ in range(2):
        run.one("kd", 500, 3, given)
    (call,) = calls
    found = yaml.safe_load(call[2].removeprefix("+models.sources="))
    assert found == [{"name": name, "checkpoint": name, "reads": "both"} for name in NAMES]
    assert {"data.train=train-False.npz", "data.test=test-False.npz", "data.images_per_task=250", "seed=3"} <= {
        *call
    }
    (line,) = map(json.loads, given.rows.read_text().splitlines())
    assert line == {
        "method": "kd", "images": 500, "reads": "both", "seed": 3, "overrides": [], "sources": {}
    }  # fmt: skip


def test_probes_read_the_last_images_and_tell_separable_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((6, 2, 2, 3), 255, np.uint8), labels=np.arange(6))
    pixels, classes = labelled(tmp_path / "a.npz", 2)
    assert (pixels.shape, float(pixels.max()), classes.tolist()) == ((2, 3, 2, 2), 1.0, [4, 5])
    random = torch.Generator().manual_seed(0)
    means, classes = 5 * torch.randn(4, 8, generator=random), torch.arange(200) % 4
    x = (means[classes] + torch.randn(200, 8, generator=random)).double()
    assert probe_accuracy(x[:150], classes[:150], x[150:], classes[150:]) > 0.95
    assert probe_accuracy(x[:150], classes[:150], -x[150:], classes[150:]) < 0.5


def test_the_page_states_whether_the_bar_is_met(tmp_path: Path) -> None:
    own = {"images": 400, "among": 344, "nearest": 200, "cosine": 0.9, "probe": 0.5, "probe_of_source": 0.6}
    own["tokens"] = {"cosine": 0.9, "explained": 0.75, "same_place": 0.3}  # type: ignore[assignment]
    row = {"images": 500, "reads": "pooled", "steps": 30, "seconds": 99.6}
    rows = [
        {**row, "method": "kd", "sources": dict.fromkeys(NAMES, own)},
        {**row, "method": "regmean", "sources": {NAMES[0]: own, NAMES[1]: {**own, "among": 339}}},
    ]
    (tmp_path / "f.md").write_text("old\n## What was expected, and what came\n\nkept\n")
    write_page(rows, tmp_path / "f.md")
    text = (tmp_path / "f.md").read_text()
    assert "## 500 images, reads=pooled\n" in text
    part = "86.0 (50.0) | 86.0 (50.0) | 75.0 | 75.0 | 50.0 (60.0) | 50.0 (60.0) | met | 30 | 100 |\n"
    assert f"| kd | {part}" in text
    assert "| regmean | 86.0 (50.0) | 84.8 (50.0) | " in text
    assert "| missed | 30 | 100 |" in text
    assert text.endswith("## What was expected, and what came\n\nkept\n")


def test_the_first_source_needs_the_file(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--onnx=FILE is missing"):
        sources.entries(tmp_path, None, tmp_path)
