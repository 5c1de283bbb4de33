"""timm's Eva: files, rotary positions, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fsmerge_cli import load_merged, load_source, merge
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.architectures.eva.family import EVA, is_eva, parse
from fsmerge_cli.common.errors import ConfigError, MismatchError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.training.teachers import network
from tests.support.merged_pairs import merged_pair
from tests.support.vits import VARIANTS, vit_source

ARGS = {"img_size": 8, "patch_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}

NAMES = {
    "DINOv3": "vit_small_patch16_dinov3",
    "EVA-02": "eva02_tiny_patch14_224",
    "EVA-02 large": "eva02_large_patch14_448",
    "Perception Encoder": "vit_pe_spatial_base_patch16_512",
    "rotary ViT": "vit_base_patch16_rope_224",
    "EVA": "eva_giant_patch14_224",
    "EVA-02 CLIP, sub-LN": "eva02_base_patch16_clip_224",
    "DINOv3, SwiGLU": "vit_huge_plus_patch16_dinov3",
    "DINOv3, biases of q and v": "vit_small_plus_patch16_dinov3_qkvb",
    "registers, no class token": "vit_betwixt_patch16_rope_reg4_gap_256",
    "no biases of qkv": "vit_mediumd_patch16_rope_reg1_gap_256",
    "positions beside rotations": "vit_base_patch16_rope_ape_224",
    "Perception Encoder, core": "vit_pe_core_base_patch16_224",
    "Perception Encoder, LayerScale": "vit_pe_lang_large_patch14_448",
}
"""One model of every kind of block, token and pooling in timm's file."""


def built(kind: str, seed: int, **args: Any) -> nn.Module:
    """timm's own model with three classes and random weights."""
    model: nn.Module = timm.create_model(NAMES[kind], num_classes=3, **{**ARGS, **args})
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def stored(kind: str, seed: int, folder: Path, **args: Any) -> nn.Module:
    """The same, as timm stores it in `folder`."""
    model = built(kind, seed, **args)
    folder.mkdir()
    config = {
        "architecture": NAMES[kind],
        "model_args": {**ARGS, **args},
        "num_classes": 3,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors"
    )
    return model


@pytest.mark.full
@pytest.mark.parametrize("kind", NAMES)
def test_a_folder_of_timm_has_the_logits_of_timm_and_merges(tmp_path: Path, kind: str) -> None:
    model = stored(kind, 1, tmp_path / "a")
    stored(kind, 2, tmp_path / "b")
    source = load_source(tmp_path / "a")
    pixels = torch.rand(3, 3, 8, 8)
    assert source.head is not None
    found = source.head(network(source)(pixels))
    torch.testing.assert_close(found, model((pixels - 0.5) / 0.25), rtol=1e-5, atol=1e-5)
    entries = [{"name": name, "checkpoint": str(tmp_path / name)} for name in "ab"]
    result = merge(entries, method="weight_matching", output=tmp_path / "out")
    backbone = timm.create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
    torch.testing.assert_close(backbone(pixels), result.backbone()(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("method", [name for name in sorted(METHODS) if not METHODS[name].uses_base])
def test_every_method_writes_what_timm_loads(tmp_path: Path, method: str) -> None:
    for seed, name in ((1, "a"), (2, "b")):
        stored("EVA-02", seed, tmp_path / name)
    result, images = merged_pair(tmp_path, method)
    backbone = timm.create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), result.backbone()(images), rtol=1e-4, atol=1e-5)
        own = load_merged(tmp_path / "out").logits(images, "b")
        whole = timm.create_model(f"local-dir:{tmp_path}/out/classifier", pretrained=True).eval()
        assert whole(images).shape == (24, 6)
    assert own.shape == (24, 3)


@pytest.mark.full
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("rotary")])
def test_units_of_rotated_queries_keep_their_places(variant: str) -> None:
    """A permutation inside a head, harmless without rotary positions, changes the function here."""
    source = vit_source(variant, 1)
    plan = compile_plan([source, replace(source, name="twin")])
    permutations = random_permutations(plan, 0, torch.Generator().manual_seed(3))
    safe = {"qk0": permutations["qk0"], "v0": permutations["v0"]}
    inner = torch.arange(24)
    inner[:8] = inner[:8].flip(0)
    images = torch.rand(4, 2, 8, 8)

    def features(order: dict[str, Tensor]) -> Tensor:
        return network(replace(source, weights=permute(plan, source.weights, order)))(images)

    before = features({})
    torch.testing.assert_close(features(safe), before, rtol=1e-4, atol=1e-5)
    assert (features({"qk0": inner}) - before).abs().max() > 1e-3


def test_without_rotary_positions_they_do_not() -> None:
    plan = compile_plan([vit_source("biases of q and v (EVA)", seed) for seed in (1, 2)])
    assert [plan.spaces[name].rotary for name in ("qk0", "v0")] == [False, False]


REFUSED = {
    "vit_small_patch16_rope_mixed_224": (
        "RotaryEmbeddingMixed: only rotary positions that are a fixed table can be merged"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_with_the_reason(name: str) -> None:
    assert is_eva(name)
    assert list(EVA.refuse(parse(name, {}, {"model_args": ARGS}, "test"))) == [REFUSED[name]]


@pytest.mark.parametrize("options", [{"num_heads": 6}, {"img_size": 12}])
def test_sources_with_other_rotations_are_refused(options: dict[str, Any]) -> None:
    variant = "rotary, registers (DINOv3)"
    sources = [vit_source(variant, 1), vit_source(variant, 2, **options)]
    with pytest.raises(
        MismatchError, match=r"rotary positions: 's1' has RotaryEmbeddingDinoV3, heads of 8 units,"
    ):
        compile_plan(sources)


def test_a_merged_model_keeps_the_size_of_its_heads() -> None:
    arch = parse("eva02_tiny_patch14_224", {}, {"model_args": ARGS}, "test")
    assert EVA.resize(arch, 32, None).args["num_heads"] == 4
    for width, heads in ((20, None), (None, 4), (32, 2)):
        with pytest.raises(ConfigError) as error:
            EVA.resize(arch, width, heads)
        assert str(error.value) == (
            f"method.width={width}, method.heads={heads}: with rotary positions every head keeps its 8 units. "
            "Pass a width that is a multiple of 8, and heads=null."
        )


def test_a_fused_layer_is_split_to_the_bit(tmp_path: Path) -> None:
    model = stored("EVA-02", 1, tmp_path / "a")
    weights = load_source(tmp_path / "a").weights
    state = model.state_dict()
    fused = torch.cat([weights[f"blocks.1.attn.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(fused, state["blocks.1.attn.qkv.weight"])
    assert torch.equal(weights["blocks.1.attn.v_proj.bias"], state["blocks.1.attn.v_bias"])
    assert "blocks.1.attn.k_proj.bias" not in weights


@pytest.mark.full
def test_the_closed_form_refuses_rotations_behind_norms(tmp_path: Path) -> None:
    for seed, name in ((1, "a"), (2, "b")):
        stored("rotary ViT", seed, tmp_path / name, qk_norm=True)
    entries = [{"name": name, "checkpoint": str(tmp_path / name)} for name in "ab"]
    with pytest.raises(ConfigError) as error:
        merge(entries, method="fs_closed_form", data=torch.rand(12, 3, 8, 8))
    assert str(error.value) == (
        "method=fs_closed_form does not exist for rotary positions behind a norm of queries and keys: it would "
        "mix units that are turned as pairs. Take method=fs_merge or method=kd with another start."
    )
    method, notes = FSMerge().settled([replace(load_source(tmp_path / name), name=name) for name in "ab"])
    assert method.start == "matched"
    assert notes == (
        "method.start=matched with 2000 steps: the closed form does not exist for rotary positions behind a norm "
        "of queries and keys: it would mix units that are turned as pairs",
    )
