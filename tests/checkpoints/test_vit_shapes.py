"""The architecture of a timm vision transformer is read from its tensors; what they leave open is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from fsmerge_cli.architectures.vit.family import VIT
from fsmerge_cli.architectures.vit.module import eps_of, set_eps
from fsmerge_cli.checkpoints.headers import read_headers
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.vit_shapes import inferred
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
HEADS = {"family": "vit", "args": {"num_heads": 3}}


def written(path: Path, name: str = "vit_base_patch16_224", **options: Any) -> Any:
    """A random timm model, whose tensors all differ; its weights are in `path`."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return model


def logits(source: Source, images: torch.Tensor) -> torch.Tensor:
    module = VIT.adapt(VIT.build(source.arch).eval(), source.arch)
    module.load_state_dict(dict(source.weights))
    assert source.head is not None
    return module(images) @ source.head.weight.T + source.head.bias


def same(source: Source, model: Any, channels: int = 3, size: tuple[int, int] = (32, 32)) -> bool:
    images = torch.rand(2, channels, *size)
    with torch.no_grad():
        return torch.equal(logits(source, images).round(decimals=4), model(images).round(decimals=4))


def read(path: Path, **entry: Any) -> Source:
    return load(SourceSpec("a", checkpoint=str(path), mean=(0.0,), std=(1.0,), **entry))


def refused(path: Path, **entry: Any) -> str:
    with pytest.raises(SourceError) as error:
        read(path, **entry)
    return str(error.value).replace(str(path), "FILE")


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp_ratio": 3.7362},
        {"qkv_bias": False},
        {"proj_bias": False},
        {"init_values": 0.5},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"no_embed_class": True, "init_values": 0.5},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2, "no_embed_class": True},
        {"global_pool": "avg"},
        {"in_chans": 1},
        {"patch_size": [8, 4], "img_size": [32, 16]},
        {"scale_mlp_norm": True},
    ],
)
def test_every_option_is_read_from_the_tensors(tmp_path: Path, options: dict[str, Any]) -> None:
    model = written(tmp_path / "a.safetensors", **{**SMALL, **options})
    source = read(tmp_path / "a.safetensors", arch=HEADS)
    assert source.arch.name == "vit_base_patch16_224"
    assert same(source, model, options.get("in_chans", 3), tuple(options.get("img_size", (32, 32))))


def test_norms_of_queries_determine_the_heads(tmp_path: Path) -> None:
    model = written(tmp_path / "a.safetensors", **SMALL, qk_norm=True)
    assert same(read(tmp_path / "a.safetensors"), model)


def test_another_number_of_heads_is_another_network(tmp_path: Path) -> None:
    model = written(tmp_path / "a.safetensors", **SMALL)
    assert not same(read(tmp_path / "a.safetensors", arch={"family": "vit", "args": {"num_heads": 6}}), model)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "prefix"), [("vit_tiny_patch16_224", ""), ("vit_small_patch32_224", "model.backbone.")]
)
def test_the_models_of_timm_are_known_by_their_shapes(tmp_path: Path, name: str, prefix: str) -> None:
    model = written(tmp_path / "a.safetensors", name, img_size=64)
    tensors = {f"{prefix}{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save(tensors, tmp_path / "a.pt")
    source = load(SourceSpec("a", checkpoint=str(tmp_path / "a.pt")))
    patch, side = (16, 4) if "16" in name else (32, 2)
    width, heads = (192, 3) if "tiny" in name else (384, 6)
    assert (side, source.arch.args["img_size"], VIT.heads(source.arch)) == (64 // patch, 64, heads)
    found = [note for note in source.notes if not note.startswith("'a': the head")]
    assert found == [
        f"'a': its architecture is read from its tensors: timm's {source.arch.name} (12 blocks of width {width}, "
        f"{patch} x {patch} patches, 64 x 64 pixels, {heads} attention heads as in that model, {CLASS_TOKEN}); "
        "if that is wrong, pass models.sources.N.arch=...",
        "'a': its files do not state mean and std, so mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5] (timm's for "
        f"{source.arch.name}) are assumed, for pixels in 0..1; if it was trained with other values, pass "
        "models.sources.N.mean=[...] and models.sources.N.std=[...]",
    ]
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():  # mean and std are folded into the first layer
        assert torch.allclose(logits(source, images), model((images - 0.5) / 0.5), atol=1e-3)


def note(source: Source) -> str:
    return next(note for note in source.notes if "read from its tensors" in note)


def test_the_mean_of_the_patches_has_the_tensors_of_the_class_token_and_is_named(tmp_path: Path) -> None:
    model = written(tmp_path / "a.safetensors", **SMALL, global_pool="avg", fc_norm=False)
    source = read(tmp_path / "a.safetensors", arch=HEADS)
    assert f", 32 x 32 pixels, {CLASS_TOKEN})" in note(source)
    assert not same(source, model)
    pooled = {"family": "vit", "args": {"num_heads": 3, "global_pool": "avg", "fc_norm": False}}
    source = read(tmp_path / "a.safetensors", arch=pooled)
    assert ", 32 x 32 pixels, the mean of the patches as features)" in note(source)
    assert same(source, model)


@pytest.mark.parametrize("options", [{"eps": 1e-2}, {"eps": 1e-2, "projection": False}])
def test_an_eps_without_a_name_is_used(tmp_path: Path, options: dict[str, Any]) -> None:
    model = set_eps(written(tmp_path / "a.safetensors", **SMALL), 1e-2)
    source = read(tmp_path / "a.safetensors", arch={**HEADS, **options})
    assert source.arch.eps == 1e-2
    assert same(source, model)
    assert not same(read(tmp_path / "a.safetensors", arch=HEADS), model)
    torch.save(model.state_dict(), tmp_path / "model.bin")
    config = {"architecture": "vit_base_patch16_224", "model_args": {**SMALL, "num_heads": 6}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "a.safetensors").unlink()
    assert same(read(tmp_path, arch={**HEADS, **options}), model)  # a config.json that states the name


@pytest.mark.parametrize("name", [{}, {"name": "vit_base_patch16_224"}])
def test_other_keys_without_a_name_are_refused(tmp_path: Path, name: dict[str, str]) -> None:
    written(tmp_path / "a.safetensors", **SMALL)
    messages = {}
    for key, value in {"num_heads": 3, "esp": 1e-5, "eps": "small"}.items():
        with pytest.raises(ConfigError) as error:
            read(tmp_path / "a.safetensors", arch={"family": "vit", **name, key: value})
        messages[key] = str(error.value).replace(f"source 'a': {tmp_path / 'a.safetensors'}", "FILE")
    assert messages == {
        "num_heads": "FILE: arch: num_heads is an argument of timm and belongs in args: args: {num_heads: 3}.",
        "esp": "unknown key in FILE: arch 'esp'. Did you mean 'eps'? Available: args, eps, name, projection.",
        "eps": "FILE: arch.eps: should be a valid number, got 'small'.",
    }


@pytest.mark.full
def test_beit_3_has_an_eps_of_its_own(tmp_path: Path) -> None:
    """Its published models are known by their shapes, and the eps of other ones is asked for."""
    for name in ("beit3_base_patch16_224", "beit3_giant_patch14_336"):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=3)
        found = inferred(model.state_dict(), {}, "here")
        assert found is not None
        assert found.options["name"] in (name, name.replace("336", "224"))
        assert found.options["args"]["img_size"] == model.patch_embed.img_size[0]
        arch = VIT.parse("vit", found.options, {}, "here")
        assert eps_of(VIT.skeleton(arch)) == eps_of(model) == 1e-5
    model = written(tmp_path / "a.safetensors", "beit3_base_patch16_224", **SMALL)
    assert refused(tmp_path / "a.safetensors", arch=HEADS) == EPS
    assert same(read(tmp_path / "a.safetensors", arch={**HEADS, "eps": 1e-5}), model)


CLASS_TOKEN = (
    "the class token as features; the mean of the patches has the same tensors, with "
    "arch={family: vit, args: {global_pool: avg, fc_norm: false}}"
)
EPS = (
    "source 'a': FILE is a vision transformer with norms inside attention and MLP, as BEiT-3 has them, but none "
    "of timm's BEiT-3 models has its shapes, and the eps of its norms is not in its tensors. Pass it (BEiT-3: "
    "1e-5, timm's usual one: 1e-6), for example: 'models.sources.N.arch={family: vit, eps: 1e-5}'"
)
ASKED = (
    "source 'a': FILE is a vision transformer of width 48, whose number of attention heads is not in its "
    "tensors: 1, 2, 3, 4, 6, 8, 12, 16, 24, 48 are possible. Pass the one that it was trained with, for example "
    "'models.sources.N.arch={family: vit, args: {num_heads: 1}}'"
)
SIZES = (
    "source 'a': FILE is a vision transformer whose {} position embeddings allow images of several sizes: height "
    "and width {}. Pass the right one, for example: "
    "'models.sources.N.arch={{family: vit, args: {{img_size: {}}}}}'"
)
CLIP = (
    "source 'a': FILE is a CLIP vision tower, whose activation (GELU or quick-GELU) is not in its tensors. Pass "
    "models.sources.N.arch=..., the timm name of the model that was trained."
)
NO_POSITIONS = (
    "source 'a': FILE is a vision transformer without position embeddings, so that the size of its images is not "
    "in its tensors. Pass it, for example: 'models.sources.N.arch={family: vit, args: {img_size: 224}}'"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, ASKED),
        ({"img_size": [16, 24]}, SIZES.format(7, "[8, 48], [16, 24], [24, 16], [48, 8]", "[24, 16]")),
        (
            {"img_size": [16, 32]},  # as many embeddings as a square without one for the class token
            SIZES.format(9, "[8, 64], [16, 32], [32, 16], [64, 8], [24, 24]", "[24, 24]"),
        ),
        ({"pre_norm": True}, CLIP),
        ({"pos_embed": "none"}, NO_POSITIONS),
    ],
)
def test_what_the_tensors_leave_open_is_asked_for(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    written(tmp_path / "a.safetensors", **{**SMALL, **options})
    assert refused(tmp_path / "a.safetensors") == message


@pytest.mark.full
def test_the_entry_of_the_message_can_be_pasted(tmp_path: Path) -> None:
    model = written(tmp_path / "a.safetensors", **{**SMALL, "img_size": [16, 32]})
    both = {"family": "vit", "args": {"num_heads": 3, "img_size": [16, 32]}}
    assert same(read(tmp_path / "a.safetensors", arch=both), model, size=(16, 32))


@pytest.mark.full
def test_the_average_pooled_model_of_768_units_has_12_or_16_heads(tmp_path: Path) -> None:
    name = "vit_base_patch16_gap_224"
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3, img_size=32, depth=12)
    tensors = {key: torch.zeros(tensor.shape, dtype=torch.float16) for key, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert refused(tmp_path / "a.safetensors") == (
        "source 'a': FILE is a vision transformer of width 768, whose number of attention heads is not in its "
        "tensors: 12, 16 are possible. Pass the one that it was trained with, for example "
        "'models.sources.N.arch={family: vit, args: {num_heads: 12}}'"
    )


def test_a_name_with_other_sizes_is_another_network_without_timm_s_mean(tmp_path: Path) -> None:
    written(tmp_path / "a.safetensors", "vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2)
    arch = {"family": "vit", "name": "vit_tiny_patch16_224", "args": {"img_size": 32, "embed_dim": 48, "depth": 2}}
    notes = load(SourceSpec("a", checkpoint=str(tmp_path / "a.safetensors"), arch=arch)).notes
    assert any("so mean 0 and std 1 are assumed" in note for note in notes)


def test_the_entries_to_paste_have_the_numbers_of_their_sources(tmp_path: Path) -> None:
    for name in "ab":
        written(tmp_path / f"{name}.safetensors", **SMALL)
    specs = [SourceSpec(name, checkpoint=str(tmp_path / f"{name}.safetensors")) for name in "ab"]
    with pytest.raises(SourceError) as error:
        read_headers(specs)
    asked = [ASKED.replace("'a'", f"'{s.name}'").replace("FILE", s.checkpoint or "") for s in specs]
    lines = [line.replace("sources.N.", f"sources.{i}.") for i, line in enumerate(asked)]
    assert str(error.value).splitlines() == lines
