"""Merged folders load without fsmerge: timm reads them and gives bit-identical logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.vits import vit_source

VARIANTS = ["class token", "pre-norm (CLIP)", "CLIP quick-GELU with projection", "packed SwiGLU (DINOv2 giant)"]


def written(folder: Path, variant: str, seed: int, normalize: bool = False) -> dict[str, Any]:
    """Write a random source to disk; returns its entry."""
    source = vit_source(variant, seed)
    assert source.head is not None
    assert source.head.bias is not None
    tensors = {"task.weight": source.head.weight, "task.bias": source.head.bias}
    facts = {"labels": {"task": list(source.head.labels)}}
    write_model(folder, model_config(source.family, source.arch), source.weights, tensors, facts)
    arch = {"family": "vit", "name": source.arch.name, "args": source.arch.args}
    arch["projection"] = source.arch.projection
    return {"name": f"t{seed}", "arch": arch, "checkpoint": str(folder), "normalize": normalize}


@pytest.mark.full
@pytest.mark.parametrize(
    ("variant", "normalize"),
    [
        *(pytest.param(v, False, marks=[pytest.mark.slow] if v != "class token" else []) for v in VARIANTS),
        ("class token", True),
    ],
)
def test_timm_loads_the_merged_folder_and_the_snippet_of_the_card_gives_the_same_logits(
    variant: str, normalize: bool, tmp_path: Path
) -> None:
    models = [written(tmp_path / str(seed), variant, seed, normalize) for seed in (1, 2)]
    result = merge(models, method="average", output=tmp_path / "out")
    merged = tmp_path / "out/merged"
    blocks = [part.split("```")[0] for part in (merged / "README.md").read_text().split("```python\n")[1:]]
    (snippet,) = [block for block in blocks if "logits = " in block]
    snippet += "\nfrom safetensors.torch import save_file"
    snippet += "\nsave_file({'images': images, 'logits': logits.detach()}, 'got')"
    blocked = "import sys\nsys.modules['fsmerge_cli'] = None\n"
    subprocess.run([sys.executable, "-c", blocked + snippet], cwd=merged, check=True)
    got = load_file(merged / "got")
    assert torch.equal(got["logits"], result.heads["t1"](result.backbone()(got["images"])))
    assert ("projector" in snippet) == normalize
    if normalize:
        assert "t1.projector" in load_file(merged / "heads.safetensors")


def test_a_merged_folder_is_a_source(tmp_path: Path) -> None:
    models = [written(tmp_path / str(seed), "class token", seed) for seed in (1, 2)]
    result = merge(models, method="average", output=tmp_path / "out")
    again = load(SourceSpec("x", checkpoint=str(tmp_path / "out/merged"), head="t2"))
    assert again.arch.input_size == (2, 8, 8)
    assert all(torch.equal(again.weights[n], t) for n, t in result.solution.weights.items())
    third = written(tmp_path / "3", "class token", 3)
    more = merge(
        [{"name": "both", "checkpoint": str(tmp_path / "out/merged"), "head": "t2"}, third], method="average"
    )
    assert list(more.heads) == ["both", "t3"]


@pytest.mark.parametrize("variant", ["class token", "pre-norm (CLIP)", "no_embed_class"])
def test_mean_and_std_are_folded_into_the_first_layer(variant: str, tmp_path: Path) -> None:
    source = vit_source(variant, 1)
    save_file(source.weights, tmp_path / "model.safetensors")
    arch = {"family": "vit", "name": source.arch.name, "args": source.arch.args}
    mean, std = (0.48, 0.4), (0.2, 0.3)
    spec = SourceSpec("x", arch=arch, checkpoint=str(tmp_path / "model.safetensors"), mean=mean, std=std)
    folded = load(spec)
    images = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    original, with_folded = (
        source.family.build(source.arch).double().eval(),
        source.family.build(source.arch).double().eval(),
    )
    original.load_state_dict(source.weights)
    with_folded.load_state_dict(folded.weights)
    centred = (images - torch.tensor(mean).reshape(2, 1, 1)) / torch.tensor(std).reshape(2, 1, 1)
    torch.testing.assert_close(with_folded(images), original(centred), rtol=1e-5, atol=1e-5)  # weights are fp32
    changed = {n for n in source.weights if not torch.equal(source.weights[n], folded.weights[n])}
    shift = "pos_embed" if variant == "pre-norm (CLIP)" else "patch_embed.proj.bias"
    assert changed == {"patch_embed.proj.weight", shift}
    if shift == "pos_embed":
        assert torch.equal(folded.weights["pos_embed"][:, :1], source.weights["pos_embed"][:, :1])


def test_a_timm_checkpoint_is_split_into_backbone_and_head(tmp_path: Path) -> None:
    source = vit_source("class token", 1)
    assert source.head is not None
    assert source.head.bias is not None
    tensors = {**source.weights, "head.weight": source.head.weight, "head.bias": source.head.bias}
    save_file(tensors, tmp_path / "model.safetensors")
    arch = {"family": "vit", "name": source.arch.name, "args": source.arch.args}
    found = load(SourceSpec("x", arch=arch, checkpoint=str(tmp_path / "model.safetensors")))
    assert found.weights.keys() == source.weights.keys()
    assert found.head is not None
    assert found.labels == ("0", "1", "2")
    z = torch.randn(2, 12)
    assert torch.equal(found.head(z), F.linear(z, source.head.weight, source.head.bias))


def test_a_merged_model_with_a_projection_is_read_back_with_it(tmp_path: Path) -> None:
    models = [written(tmp_path / str(seed), "CLIP quick-GELU with projection", seed) for seed in (1, 2)]
    result = merge(models, method="average", output=tmp_path / "out")
    again = load(SourceSpec("x", checkpoint=str(tmp_path / "out/merged"), head="t1"))
    assert again.arch.projection
    assert again.arch.features == 5
    assert again.weights.keys() == result.solution.weights.keys()


def test_a_checkpoint_of_another_architecture_than_given_is_refused(tmp_path: Path) -> None:
    entry = written(tmp_path / "1", "CLIP quick-GELU with projection", 1)
    spec = SourceSpec("x", arch="vit_base_patch16_clip_224.laion2b", checkpoint=entry["checkpoint"])
    with pytest.raises(SourceError) as error:
        load(spec)
    assert str(error.value) == (
        f"source 'x': {tmp_path}/1 is a vit_base_patch16_clip_quickgelu_224 according to its config.json, but "
        "models.sources.N.arch is vit_base_patch16_clip_224. Pass models.sources.N.arch=null to use the "
        "architecture of the checkpoint."
    )


def test_the_mean_of_a_checkpoint_overrides_that_of_timm(tmp_path: Path) -> None:
    entry = written(tmp_path / "1", "pre-norm (CLIP)", 1)
    arch = {**entry["arch"], "name": "vit_base_patch16_clip_224.laion2b"}
    own = load(SourceSpec("x", arch=arch, checkpoint=entry["checkpoint"]))
    source = vit_source("pre-norm (CLIP)", 1)
    assert all(torch.equal(own.weights[n], t) for n, t in source.weights.items())  # its config has mean 0, std 1
