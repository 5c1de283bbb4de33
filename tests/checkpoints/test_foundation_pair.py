"""`models=foundation_pair`: networks of unlike architectures; random ones of the real shapes replace the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import create_model

from fsmerge_cli import load_merged
from fsmerge_cli.checkpoints.architecture import hub_name
from fsmerge_cli.checkpoints.files import hub_config
from fsmerge_cli.cli import main
from fsmerge_cli.common import presets
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.third_party import random_weights


def entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = presets.load("models", "foundation_pair")["sources"]
    return found


def test_the_pair_lists_public_weights_and_uses_their_preprocessing_in_timm() -> None:
    for entry in entries():
        name = hub_name(SourceSpec(**entry))
        assert name is not None
        assert hub_config(name)["hf_hub_id"]
        assert entry["mean"] is entry["std"] is None


def stand_in(entry: dict[str, Any], size: dict[str, Any], folder: Path) -> str:
    """A folder of a random network of the entry's architecture, of another depth, width and image size."""
    arch = entry["arch"]
    name, classes = (arch, 0) if isinstance(arch, str) else (arch["name"], arch["args"]["num_classes"])
    args = {**size, **({"num_classes": classes} if classes else {})}
    module = random_weights(
        create_model(name.partition(".")[0], **{"num_classes": 0, **args}),
        len(name),
        0.3 if "embed_dim" in size else 0.03,
    )
    folder.mkdir()
    save_file(module.state_dict(), folder / "model.safetensors")
    stated = {"mean": hub_config(name)["mean"], "std": hub_config(name)["std"]}
    config: dict[str, Any] = {"architecture": name.partition(".")[0], "model_args": args, "pretrained_cfg": stated}
    if classes:
        config |= {"projection": True, "num_classes": classes}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def photos(folder: Path, count: int, size: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        small = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i}.png")


def distilled(folder: Path, size: int, sizes: dict[str, Any], images: int, steps: int) -> list[str]:
    """The command of docs/features.md on local stand-ins."""
    sources = [
        f"models.sources.{i}.checkpoint={stand_in(entry, sizes, folder / entry['name'])}"
        for i, entry in enumerate(entries())
    ]
    sources += [f"models.sources.{i}.arch=null" for i in range(2)]
    photos(folder / "photos", images, size)
    command = ["merge", "+models=foundation_pair", *sources, f"models.sources.0.input_size={size}"]
    command += ["method=kd", "method.start=first", f"method.steps={steps}", "method.batch_size=4"]
    return [*command, f"--images={folder / 'photos'}", "hardware.threads=1", f"output.dir={folder / 'out'}"]


def check(folder: Path, size: int, grids: tuple[int, int], widths: tuple[int, int], token_width: int) -> None:
    """What the run wrote: notes, agreement of both sources, features and tokens on the grid of each."""
    evaluation = json.loads((folder / "out" / "evaluation.json").read_text())
    assert "average" not in evaluation["rows"]
    assert set(evaluation["tokens"]) == {"dinov2", "clip"}
    notes = " ".join(evaluation["notes"])
    assert "'clip' and 'dinov2' differ (patch size, " in notes
    assert "the relative feature error of the initial model, with fitted projectors: dinov2 " in notes
    assert "reproduces no source" not in notes
    assert (
        f"tokens of 'clip': those of the merged model ({grids[0]} x {grids[0]} patches) are brought to its places "
        f"({grids[1]} x {grids[1]}) by bilinear interpolation, which is not exact"
    ) in notes
    model, pixels = load_merged(folder / "out"), torch.rand(2, 3, size, size)
    for name, grid, width in zip(("dinov2", "clip"), grids, widths):
        assert model.features(pixels, name).shape == (2, width)
        assert model.tokens(pixels, name).shape == (2, grid**2, token_width)
        assert evaluation["tokens"][name]["positions"] == grid**2
    assert evaluation["tokens"]["dinov2"]["explained"] > 0.5  # the merged model started as this one


SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.full
def test_unlike_architectures_are_distilled_into_one_like_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = distilled(tmp_path, 112, {**SMALL, "img_size": 112}, 18, 2)
    assert main(command) == 0, capsys.readouterr().err
    check(tmp_path, 112, (8, 7), (24, 512), 24)
    capsys.readouterr()
    assert main(["check", *command[1:-1]]) == 0
    assert "method=kd method.start=first" in capsys.readouterr().out
    capsys.readouterr()
    assert main([*command, "method.start=matched", "output.overwrite=true"]) == 2
    message = capsys.readouterr().err
    assert "  - patch size: 'dinov2' has [14, 14], 'clip' has [16, 16]\n" in message
    assert "; method=kd method.start=first trains a network like 'dinov2' on the features of all\n" in message


@pytest.mark.slow
def test_the_pair_in_its_real_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """224 pixels, width 768, patches of 14 and 16, one block instead of twelve."""
    assert main(distilled(tmp_path, 224, {"depth": 1, "img_size": 224}, 18, 2)) == 0, capsys.readouterr().err
    check(tmp_path, 224, (16, 14), (768, 512), 768)
