"""CLIP vision towers of OpenAI and open_clip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused
from tests.support.third_party import (
    PIXELS,
    TINY,
    clip_features,
    clip_tower,
    torchvision_source,
    vit_arch,
)

QUICK_GELU = {"family": "vit", "name": "vit_base_patch16_clip_quickgelu_224", "args": TINY}


@pytest.mark.full
@pytest.mark.parametrize("prefix", ["visual.", "module.visual.", ""])
def test_a_clip_tower_gives_the_same_features(prefix: str, tmp_path: Path) -> None:
    state, pixels = clip_tower(1, prefix), torch.rand(3, 3, 8, 8)
    save_file(state, tmp_path / "clip.safetensors")
    found = load(SourceSpec("a", arch=QUICK_GELU, checkpoint=str(tmp_path / "clip.safetensors"), **PIXELS))
    tower = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    torch.testing.assert_close(network(found)(pixels), clip_features(tower, pixels))
    assert found.arch.projection
    assert (found.arch.features, found.head) == (5, None)
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in load(clip_spec(tmp_path)).weights.items()}
    assert shapes == {n: t.shape for n, t in found.weights.items()}


def clip_spec(folder: Path) -> SourceSpec:
    return SourceSpec("a", arch=QUICK_GELU, checkpoint=str(folder / "clip.safetensors"), **PIXELS)


def test_a_clip_tower_has_the_mean_and_std_of_clip(tmp_path: Path) -> None:
    state = clip_tower(1)
    save_file(state, tmp_path / "clip.safetensors")
    found = load(SourceSpec("a", arch=QUICK_GELU, checkpoint=str(tmp_path / "clip.safetensors")))
    pixels = torch.rand(3, 3, 8, 8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    torch.testing.assert_close(
        network(found)(pixels), clip_features(state, (pixels - mean) / std), rtol=1e-4, atol=1e-5
    )


def test_a_clip_tower_needs_an_arch_for_its_activation(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file(clip_tower(1), file)
    assert refused(SourceSpec("a", checkpoint=str(file))) == (
        f"source 'a': {file} contains a CLIP vision tower, whose activation (GELU or quick-GELU) cannot be "
        "inferred. Pass models.sources.N.arch=vit_base_patch16_clip_quickgelu_224.openai for OpenAI's ViT-B/16, "
        "vit_base_patch16_clip_224.laion2b for LAION's, or another vit_*_clip_* name of timm."
    )


def test_a_projection_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file({**clip_tower(1), "visual.proj": torch.tensor(1.0)}, file)
    assert refused(SourceSpec("a", arch=QUICK_GELU, checkpoint=str(file))) == (
        f"source 'a': {file}: proj is [], a CLIP tower's is [width, features]. Download it again."
    )


def test_a_clip_tower_of_other_sizes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file(clip_tower(1), file)
    other = {**QUICK_GELU, "args": {**TINY, "img_size": 16}}
    assert refused(SourceSpec("a", arch=other, checkpoint=str(file))) == (
        f"source 'a': {file}: a CLIP tower with patches of [4, 4], 5 positions and width 12; "
        "models.sources.N.arch has [4, 4], 17 and 12. Choose the matching timm name."
    )


def test_a_timm_tower_inside_open_clip_keeps_its_projection(tmp_path: Path) -> None:
    module = network(torchvision_source(tmp_path))
    state = {f"visual.trunk.{name}": tensor for name, tensor in module.state_dict().items()}
    projection = torch.randn(5, 12)
    save_file(
        {**state, "visual.head.proj.weight": projection, "text.x": torch.zeros(1)}, tmp_path / "c.safetensors"
    )
    found = load(SourceSpec("a", arch=vit_arch(), checkpoint=str(tmp_path / "c.safetensors"), **PIXELS))
    pixels = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network(found)(pixels), module(pixels) @ projection.T)
    assert found.head is None


@pytest.mark.parametrize("head", ["head", "fc"])
def test_a_wrapper_with_a_backbone_named_trunk_keeps_its_classifier(head: str, tmp_path: Path) -> None:
    source = torchvision_source(tmp_path)
    state = {f"trunk.{name}": tensor for name, tensor in source.weights.items()}
    classifier = torch.randn(7, 12)
    save_file({**state, f"{head}.weight": classifier}, tmp_path / "w.safetensors")
    found = load(SourceSpec("a", arch=vit_arch(), checkpoint=str(tmp_path / "w.safetensors"), **PIXELS))
    assert found.head is not None
    assert torch.equal(found.head.weight, classifier)
    assert not found.arch.projection
    assert found.weights.keys() == source.weights.keys()
    assert found.notes == ()
