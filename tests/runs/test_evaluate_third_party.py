"""`fsmerge evaluate` on third-party models: timm, Hugging Face, bare checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fsmerge_cli import evaluate, load_merged
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.reporting import schema
from fsmerge_cli.runs.merged import Reading
from fsmerge_cli.training.teachers import network
from tests.support.evaluations import rows_of, timm_folder, write_random_images
from tests.support.sources import mlp_source
from tests.support.third_party import hugging_face

pytestmark = pytest.mark.full


def test_a_timm_folder_with_its_classifier_inside(tmp_path: Path) -> None:
    model = timm_folder(tmp_path / "other")
    root = write_random_images(tmp_path / "images", {"pets": ("ant", "bee", "cat", "dog")})
    reading = {"task": "pets", "labels": ["ant", "bee", "cat", "dog"]}
    found = evaluate(tmp_path / "other", data=Folder(root=str(root)), reading=reading)
    pixels = torch.stack([_pixels(p) for p in sorted((root / "pets/test").rglob("*.png"))])
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        torch.testing.assert_close(found.outputs.logits[0], model((pixels - mean) / std), rtol=1e-4, atol=1e-5)
    content = found.evaluation()
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(content)
    assert (content["method"], content["tasks"]) == ("unknown", ["pets"])
    assert content["rows"]["merged"]["tasks"]["pets"]["count"] == 16


def _pixels(path: Path) -> torch.Tensor:
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(Image.open(path).convert("RGB")).float() / 255


def test_a_bare_checkpoint_with_its_classifier_inside(digits_run: Path, tmp_path: Path) -> None:
    heads = load_file(digits_run / "merged/heads.safetensors")
    own = {f"head.{part}": heads[f"low.{part}"] for part in ("weight", "bias")}
    save_file({**load_file(digits_run / "merged/model.safetensors"), **own}, tmp_path / "mine.safetensors")
    arch = {"family": "mlp", "input_size": [1, 8, 8], "widths": [64, 64]}
    reading = Reading(task="low", arch=arch, labels=tuple("01234"))
    row = evaluate(tmp_path / "mine.safetensors", data="digits", reading=reading).evaluation()["rows"]["merged"]
    assert row["tasks"]["low"] == {**rows_of(digits_run)["merged"]["tasks"]["low"], "relative": None}


@pytest.mark.full
def test_heads_beside_the_weights_of_another_library(tmp_path: Path) -> None:
    module = hugging_face(1, head=False)
    module.save_pretrained(tmp_path)
    heads = {"pets.weight": torch.randn(4, 12), "cars.weight": torch.randn(3, 12), "cars.bias": torch.randn(3)}
    save_file(heads, tmp_path / "heads.safetensors")
    model, pixels = load_merged(tmp_path, {"mean": [0.0], "std": [1.0]}), torch.rand(2, 3, 8, 8)
    assert model.labels == {"cars": ("cat", "dog", "ox"), "pets": ("0", "1", "2", "3")}
    with torch.no_grad():
        features = module(pixels).last_hidden_state[:, 0]
    expected = features @ heads["cars.weight"].T + heads["cars.bias"]
    torch.testing.assert_close(model.logits(pixels, "cars"), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_a_training_script_is_read_as_a_source(digits_run: Path, tmp_path: Path) -> None:
    heads = load_file(digits_run / "merged/heads.safetensors")
    own = {f"head.{part}": heads[f"low.{part}"] for part in ("weight", "bias")}
    weights = {**load_file(digits_run / "merged/model.safetensors"), **own}
    empty = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"model": empty, "model_ema": weights, "epoch": 3}, tmp_path / "trainer.pt")
    (tmp_path / "labels.txt").write_text("\n".join("01234"))
    arch = {"family": "mlp", "input_size": [1, 8, 8], "widths": [64, 64]}
    reading = {"task": "low", "arch": arch, "labels": str(tmp_path / "labels.txt"), "ema": True}
    reading |= {"mean": [0.0], "std": [1.0]}
    found = evaluate(tmp_path / "trainer.pt", data="digits", reading=reading).evaluation()
    low = rows_of(digits_run)["merged"]["tasks"]["low"]
    assert found["rows"]["merged"]["tasks"]["low"] == {**low, "relative": None}
    model = load_merged(tmp_path / "trainer.pt", {**reading, "ema": None})
    assert not model.backbone.state_dict()["fc0.weight"].any()
    assert model.notes == (
        "the weights under 'model.' were used, the EMA weights under 'model_ema.' were not (model.ema=true uses "
        "them)",
    )
    save_file(
        {f"student.{n}": t for n, t in weights.items()} | {f"old.{n}": t for n, t in empty.items()},
        tmp_path / "two.safetensors",
    )
    for name in "abcde":
        (tmp_path / "images/low" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / f"images/low/{name}/0.png")
    reading = {"task": "low", "arch": arch, "labels": "data", "prefix": "student"}
    images = {"name": "folder", "root": str(tmp_path / "images")}
    model = load_merged(tmp_path / "two.safetensors", reading, images)
    assert model.labels == {"low": tuple("abcde")}
    assert torch.equal(model.backbone.state_dict()["fc0.weight"], weights["fc0.weight"])
    with pytest.raises(ConfigError) as error:
        load_merged(tmp_path / "two.safetensors", reading)
    assert str(error.value) == (
        "labels=data uses the names of class folders, but no data set is given. Pass data=folder with class "
        "folders, or a list: model.labels=[...]"
    )


def test_model_and_head_of_a_checkpoint_can_be_selected(tmp_path: Path) -> None:
    one, two, other = (mlp_source("a", [8], seed) for seed in (1, 2, 3))
    arch, pixels = {"family": "mlp", "input_size": [1, 4, 4], "widths": [8]}, torch.rand(3, 1, 4, 4)
    parts = (("model", one), ("model_ema", two), ("teacher", other))
    state = {f"{part}.{name}": t for part, source in parts for name, t in source.weights.items()}
    heads = {"model.head.weight": torch.ones(3, 8), "fc.weight": torch.ones(2, 8)}
    save_file({**state, **heads}, tmp_path / "x.safetensors")

    def refused(**reading: Any) -> str:
        with pytest.raises(SourceError) as error:
            load_merged(tmp_path / "x.safetensors", {"arch": arch, **reading})
        return str(error.value)

    where = f"{tmp_path}/x.safetensors"
    assert refused() == (
        f"{where} contains 2 models, under 'model.', 'teacher.'. Choose one with model.prefix=..."
    )
    assert refused(prefix="model.x") == (
        f"{where}: unknown prefix 'model.x'. Did you mean 'model'? Available: model, model_ema, teacher."
    )
    assert refused(prefix="model") == (
        f"{where} has 2 heads: fc, model.head. Choose the head of this task: model.head=NAME"
    )
    model = load_merged(where, {"arch": arch, "prefix": "model", "head": "fc"})
    with torch.no_grad():
        assert torch.equal(model.backbone(pixels), network(one)(pixels))
    assert [len(labels) for labels in model.labels.values()] == [2]
