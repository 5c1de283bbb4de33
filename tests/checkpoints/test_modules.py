"""Torch modules as sources, and position embeddings resampled to another image size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import create_model
from torch import nn

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.errors import ConfigError, MismatchError, SourceError
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source
from tests.support.third_party import random_weights, torchvision_vit
from tests.support.vits import QUICK, TINY, VARIANTS, vit_source

PLAIN: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
LISTED = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.full])
    for name in VARIANTS
    if "projection" not in VARIANTS[name][1]
    and name not in ("RMSNorm", "embedding norm")  # which timm cannot build from options
]


def built(variant: str, seed: int) -> nn.Module:
    name, extra = VARIANTS[variant]
    return random_weights(create_model(name, num_classes=3, **{**TINY, **extra}), seed)


@pytest.mark.parametrize("variant", LISTED)
def test_the_architecture_of_a_timm_module_is_inferred(variant: str) -> None:
    module, pixels = built(variant, 1), torch.rand(3, 2, 8, 8)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = load(SourceSpec("a", module=module, labels=("x", "y", "z"), **PLAIN))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels))
    assert (found.labels, found.origin) == (("x", "y", "z"), f"module {type(module).__name__}")
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert load(SourceSpec("a", module=module)).sha256 == found.sha256
    assert load(SourceSpec("a", module=built(variant, 2))).sha256 != found.sha256


def test_mean_and_std_of_a_module_are_folded_and_reported() -> None:
    name, _ = VARIANTS["class token"]
    module = random_weights(create_model(name, num_classes=3, **{**TINY, "in_chans": 3}), 1)
    found, pixels = load(SourceSpec("a", module=module)), torch.rand(3, 3, 8, 8)
    assert found.head is not None
    torch.testing.assert_close(
        found.head(network(found)(pixels)), module((pixels - 0.5) / 0.5), rtol=1e-4, atol=1e-5
    )
    assert found.notes == (
        "'a': mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5] are taken from the module; if it was trained with "
        "other values, pass mean and std",
    )
    assert load(SourceSpec("a", module=module, **PLAIN)).notes == ()


CLIPS = [("openai", 5, True), ("openai_ft_in1k", 5, False), ("laion2b_ft_in12k_in1k", 5, False)]


@pytest.mark.parametrize(("tag", "stated", "projection"), CLIPS)
def test_a_clip_tower_has_a_projection_and_a_fine_tuned_one_a_classifier(
    tag: str, stated: int, projection: bool
) -> None:
    name = "vit_base_patch16_clip_224"
    module = random_weights(create_model(f"{name}.{tag}", num_classes=5, **TINY), 1)
    module.pretrained_cfg = {**module.pretrained_cfg, "num_classes": stated}  # as without num_classes=5
    found, pixels = load(SourceSpec("a", module=module, **PLAIN)), torch.rand(3, 2, 8, 8)
    assert found.arch.projection == projection
    assert (found.head is None) == projection
    features = network(found)(pixels)
    torch.testing.assert_close(features if found.head is None else found.head(features), module(pixels))


def test_another_eps_of_the_norms_is_only_kept_in_the_source() -> None:
    module = built("class token", 1)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-2
    found, pixels = load(SourceSpec("a", module=module, **PLAIN)), torch.rand(3, 2, 8, 8)
    assert found.head is not None
    assert found.arch.eps == 1e-2
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels))
    plan = compile_plan([found, load(SourceSpec("b", module=built("class token", 2), **PLAIN))])
    assert plan.arch.eps is None


def test_a_modified_module_needs_an_arch() -> None:
    module: Any = built("class token", 1)
    for block in module.blocks:
        block.mlp.act = nn.ReLU()
    with pytest.raises(SourceError) as error:
        load(SourceSpec("a", module=module, **PLAIN))
    assert str(error.value) == (
        "source 'a': module VisionTransformer: this module differs from timm's vit_tiny_patch16_224 in: "
        "activation. Also pass its arch: {family: vit, name: ..., args: {...}}."
    )
    arch = {"family": "vit", "name": "vit_tiny_patch16_224", "args": {**TINY, "act_layer": "relu"}}
    found, pixels = load(SourceSpec("a", module=module, arch=arch, **PLAIN)), torch.rand(3, 2, 8, 8)
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels))


def test_modules_of_mlps_and_of_torchvision_take_an_arch() -> None:
    source = mlp_source("a", [6, 5], 1)
    arch = {"family": "mlp", "input_size": (1, 4, 4), "widths": (6, 5)}
    found = load(SourceSpec("a", module=network(source), arch=arch))
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in source.weights.items())
    with pytest.raises(SourceError) as error:
        load(SourceSpec("a", module=network(source)))
    assert str(error.value) == (
        "source 'a': module Sequential does not specify its architecture. Also pass its arch, a timm name or "
        "{'family': ..., ...} (bert, convnext, eva, mlp, modernbert, resnet, vgg, vit)."
    )
    module, pixels = torchvision_vit(1), torch.rand(2, 3, 8, 8)
    arch = {"family": "vit", "name": "vit_base_patch16_224"}
    arch["args"] = {**TINY, "in_chans": 3, "mlp_ratio": 20 / 12}
    own = load(SourceSpec("a", module=module, arch=arch, **PLAIN))
    assert own.head is not None
    torch.testing.assert_close(own.head(network(own)(pixels)), module(pixels))


@pytest.mark.full
def test_modules_are_merged_and_named_in_the_written_files(tmp_path: Path) -> None:
    entries = [
        {"name": "a", "module": nn.DataParallel(built("class token", 1)), **PLAIN},
        {"name": "b", "module": built("class token", 2), **PLAIN, "labels": ["x", "y", "z"]},
    ]
    result = merge(entries, method="average", output=tmp_path / "out")
    assert list(result.heads) == ["a", "b"]
    assert "module: VisionTransformer" in (tmp_path / "out/config.yaml").read_text()
    assert [s["origin"] for s in result.provenance["sources"]] == [
        "module DataParallel",
        "module VisionTransformer",
    ]


def test_a_module_and_a_checkpoint_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        merge([{"name": "a", "module": nn.Linear(1, 1), "checkpoint": "x"}], method="average")
    assert str(error.value) == "source 'a' has both a checkpoint and a module. Remove one of them."


# Other image sizes


def saved(folder: Path, variant: str, seed: int, **options: Any) -> SourceSpec:
    source = vit_source(variant, seed, **options)
    write_model(folder, model_config(source.family, source.arch), source.weights, {}, {})
    return SourceSpec(f"s{seed}", checkpoint=str(folder))


@pytest.mark.parametrize("variant", ["class token", pytest.param("no_embed_class", marks=pytest.mark.full)])
def test_position_embeddings_are_resampled_by_timm_if_requested(variant: str, tmp_path: Path) -> None:
    small, large = saved(tmp_path / "1", variant, 1), saved(tmp_path / "2", variant, 2, img_size=16)
    with pytest.raises(MismatchError) as error:
        compile_plan([load(small), load(large)])
    assert error.value.reasons[0] == (
        "input_size: 's1' has [2, 8, 8], 's2' has [2, 16, 16]; models.sources.N.input_size=[8, 8] resamples the "
        "position embeddings of the other, which is not exact"
    )
    found, own = load(replace(large, input_size=8)), load(large)
    compile_plan([load(small), found])
    assert found.arch.input_size == (2, 8, 8)
    assert found.notes == (
        "'s2': its position embeddings were resampled from 16 x 16 to 8 x 8 pixels, which is not exact: its "
        "scores differ from those at its original size",
    )
    changed = (
        {name for name, tensor in own.weights.items() if not torch.equal(found.weights[name], tensor)}
        if own.weights["pos_embed"].shape == found.weights["pos_embed"].shape
        else {"pos_embed"}
    )
    assert changed == {"pos_embed"}
    reference = network(own)
    reference.set_input_size((8, 8))  # timm's implementation
    pixels = torch.rand(2, 2, 8, 8)
    torch.testing.assert_close(network(found)(pixels), reference(pixels))
    stated = load(replace(large, input_size=(8, 8)), headers=True)
    assert {n: t.shape for n, t in stated.weights.items()} == {n: t.shape for n, t in found.weights.items()}


def test_the_original_image_size_changes_nothing(tmp_path: Path) -> None:
    spec = saved(tmp_path / "1", "class token", 1)
    assert load(replace(spec, input_size=8)).notes == ()


class Packed(nn.Module):
    """A module with a state that is no tensor, as quantised ones have."""

    def get_extra_state(self) -> object:
        """Any value."""
        return torch.qint8


@pytest.mark.parametrize(("head", "name"), [(nn.LazyLinear(3), "weight"), (Packed(), "_extra_state")])
def test_a_module_without_ordinary_tensors_is_refused(head: nn.Module, name: str) -> None:
    with pytest.raises(SourceError) as error:
        load(SourceSpec("a", module=nn.ModuleDict({"head": head})))
    assert str(error.value) == (
        f"source 'a': module ModuleDict: head.{name} is no ordinary tensor (quantised, or of a lazy module that "
        "has not been run). Pass the original module, after one forward pass."
    )
