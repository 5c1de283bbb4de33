"""`fsmerge finetune`, files: the folder is a source, and checkpoints are initial weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fsmerge_cli import evaluate, load_merged
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import (
    CertificateError,
    OutputError,
)
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.finetuning import (
    CPU,
    LOW,
    VIT,
    small_finetune,
)
from tests.support.third_party import hugging_face

pytestmark = pytest.mark.full


def test_the_folder_is_a_source_and_loads_in_timm(tmp_path: Path) -> None:
    done = small_finetune(VIT, output=tmp_path / "low")
    assert sorted(path.name for path in (tmp_path / "low").iterdir()) == [
        ".fsmerge.json",
        "README.md",
        "config.json",
        "config.yaml",
        "correct.safetensors",
        "evaluation.json",
        "heads.safetensors",
        "model.safetensors",
    ]
    source = load(SourceSpec("low", checkpoint=str(tmp_path / "low")))
    assert source.labels == LOW
    pixels = torch.rand(4, 1, 8, 8)
    backbone = timm.create_model(f"local-dir:{tmp_path / 'low'}", pretrained=True).eval()
    head = load_file(tmp_path / "low/heads.safetensors")
    with torch.no_grad():
        logits = F.linear(backbone(pixels), head["low.weight"], head["low.bias"])
    torch.testing.assert_close(load_merged(tmp_path / "low").logits(pixels, "low"), logits)
    assert (
        evaluate(tmp_path / "low", data="from_run", hardware=CPU).scores["merged"].mean == done.scores["low"].mean
    )
    card = (tmp_path / "low/README.md").read_text()
    assert "| low \\(source\\) | " in card
    assert '- {"name": "low", "checkpoint": "low"}' in card
    found = json.loads((tmp_path / "low/evaluation.json").read_text())
    assert found == json.loads(json.dumps(done.evaluation()))
    assert found["method"] == "finetune"
    low, high = found["rows"]["low"]["tasks"]["low"]["interval"]
    assert low < found["rows"]["low"]["mean_top1"] < high
    with pytest.raises(OutputError, match="holds a finished run"):
        small_finetune(VIT, output=tmp_path / "low")


def test_training_starts_from_the_checkpoint_with_any_head_and_normalisation(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(VIT["name"], num_classes=9, **VIT["args"]).eval()  # type: ignore[arg-type]
    save_file(model.state_dict(), tmp_path / "start.safetensors")
    start = {"checkpoint": str(tmp_path / "start.safetensors"), "start": "pretrained", "mean": [0.3], "std": [0.5]}
    done = small_finetune(VIT, model=start, training={"steps": 0})
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features((pixels - 0.3) / 0.5), pre_logits=True)
        torch.testing.assert_close(done.backbone()(pixels), expected, rtol=1e-4, atol=1e-5)
    assert done.source.head is not None
    assert len(done.source.head.weight) == 5
    # A folder of ours is a start, too, whatever heads it has.
    done.save(tmp_path / "one")
    heads = {f"{task}.weight": torch.zeros(3, 12) for task in ("a", "b")}
    save_file(heads, tmp_path / "one/heads.safetensors")
    again = small_finetune(VIT, model={"checkpoint": str(tmp_path / "one"), "arch": None, "start": "pretrained"})
    assert again.source.arch == done.source.arch
    assert again.evaluation()["provenance"]["sources"][0]["origin"] == str(tmp_path / "one")
    # And so is a wrapper with a head inside and one beside.
    wrapped = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file({**wrapped, "fc.weight": torch.zeros(3, 12)}, tmp_path / "start.safetensors")
    same = small_finetune(VIT, model=start, training={"steps": 0})
    assert all(torch.equal(t, done.source.weights[n]) for n, t in same.source.weights.items())


@pytest.mark.full
def test_a_hugging_face_vit_is_trained_with_the_eps_of_the_written_model(tmp_path: Path) -> None:
    module = hugging_face(1, num_channels=1)
    module.save_pretrained(tmp_path / "hf")
    model = {"checkpoint": str(tmp_path / "hf"), "arch": None, "start": "pretrained"}
    done = small_finetune(model=model, training={"head_steps": 1, "steps": 1}, output=tmp_path / "out")
    assert done.source.arch.eps is None
    assert "'low': its norms have eps=1e-12, those of the trained model have timm's 1e-06" in done.notes
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            load_merged(tmp_path / "out").backbone(pixels), done.backbone()(pixels), rtol=1e-5, atol=1e-6
        )


def test_a_written_model_that_differs_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = small_finetune()
    monkeypatch.setattr("fsmerge_cli.runs.finetuned.write_model", _wrong)
    with pytest.raises(CertificateError, match="reloaded: "):
        done.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _wrong(folder: Path, config: Any, weights: Any, heads: Any, facts: Any) -> None:
    from fsmerge_cli.checkpoints.write import write_model

    write_model(folder, config, weights, {name: tensor + 1 for name, tensor in heads.items()}, facts)
