"""Files of other libraries, against the real classes with random weights where they are light enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.key_tables import CLIP, REFUSED, TORCHVISION, TRANSFORMERS, TRUNK, recognise
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.check import inspect
from fsmerge_cli.runs.request import request
from fsmerge_cli.training.teachers import network
from tests.support.third_party import clip_features, clip_tower, hugging_face, random_weights, torchvision_vit

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
PLAIN: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
QUICK = {"family": "vit", "name": "vit_base_patch16_clip_quickgelu_224", "args": TINY}


def arch(ratio: float = 20 / 12) -> dict[str, Any]:
    return {"family": "vit", "name": "vit_base_patch16_224", "args": {**TINY, "mlp_ratio": ratio}}


def refused(spec: SourceSpec) -> str:
    with pytest.raises(SourceError) as error:
        load(spec)
    return str(error.value)


# torchvision


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model."])
def test_torchvisions_vit_gives_its_own_logits(prefix: str, tmp_path: Path) -> None:
    module, pixels = torchvision_vit(1), torch.rand(3, 3, 8, 8)
    file = tmp_path / "model.pt"
    torch.save({f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}, file)
    found = load(SourceSpec("a", arch=arch(), checkpoint=str(file), **PLAIN))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels))
    assert (found.labels, found.notes) == (("0", "1", "2", "3", "4"), ())


def test_names_of_older_torchvisions_are_read(tmp_path: Path) -> None:
    module, pixels = torchvision_vit(1), torch.rand(3, 3, 8, 8)
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in module.state_dict().items()
    }
    save_file(old, tmp_path / "old.safetensors")
    found = load(SourceSpec("a", arch=arch(), checkpoint=str(tmp_path / "old.safetensors"), **PLAIN))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels))


@pytest.mark.full
def test_torchvisions_published_sizes_need_no_arch(tmp_path: Path) -> None:
    from torchvision.models import vit_b_32

    module, pixels = random_weights(vit_b_32(num_classes=3), 2, 0.05), torch.rand(1, 3, 224, 224)
    torch.save(module.state_dict(), tmp_path / "model.pth")
    found = load(SourceSpec("a", checkpoint=str(tmp_path / "model.pth")))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = module((pixels - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), expected, rtol=1e-3, atol=1e-3)
    assert found.arch.args["num_heads"] == 12
    assert found.preprocessing.crop_pct == 0.875
    assert found.notes == (
        "'a': mean and deviation are those of torchvision's public weights; where it was trained otherwise, pass "
        "models.sources.N.mean=[...] and std=[...]",
    )


def test_of_other_sizes_the_number_of_heads_has_to_be_said(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(torchvision_vit(1).state_dict(), file)
    assert refused(SourceSpec("a", checkpoint=str(file))) == (
        f"source 'a': {file} looks like torchvision's VisionTransformer of width 12, whose number of heads the "
        "weights do not say. Pass models.sources.N.arch={family: vit, name: vit_base_patch16_224, "
        "args: {num_heads: ..., ...}}."
    )


# Hugging Face

NEW = (("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj"))


@pytest.mark.full
@pytest.mark.parametrize(
    "options", [{}, {"hidden_act": "gelu_new"}, {"qkv_bias": False}, {"layer_norm_eps": 1e-3}]
)
def test_a_folder_of_hugging_face_gives_its_own_logits(options: dict[str, Any], tmp_path: Path) -> None:
    module, pixels = hugging_face(1, **options), torch.rand(3, 3, 8, 8)
    module.save_pretrained(tmp_path)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = load(SourceSpec("a", checkpoint=str(tmp_path)))
    mean, std = (torch.tensor(processor[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    assert found.head is not None
    torch.testing.assert_close(
        found.head(network(found)(pixels)), module((pixels - mean) / std).logits, rtol=1e-4, atol=1e-5
    )
    assert found.labels == ("cat", "dog", "ox")
    eps = options.get("layer_norm_eps", 1e-12)
    assert found.arch.eps == eps
    assert found.notes == (f"'a': its norms have eps={eps:g}, those of the merged model timm's 1e-06",)
    assert (found.preprocessing.interpolation, found.preprocessing.crop_mode) == ("bicubic", "squash")


@pytest.mark.full
def test_its_state_dict_is_read_under_both_of_its_names(tmp_path: Path) -> None:
    module, pixels = hugging_face(1, head=False), torch.rand(3, 3, 8, 8)
    module.save_pretrained(tmp_path / "saved")  # encoder.layer.0.attention.attention.query
    torch.save(module.state_dict(), tmp_path / "state.pt")  # layers.0.attention.q_proj, from version 5 on
    expected = module(pixels).last_hidden_state[:, 0]
    for path, own in (("saved", None), ("state.pt", {**arch(), "eps": 1e-12})):
        found = load(SourceSpec("a", arch=own, checkpoint=str(tmp_path / path), **PLAIN))
        torch.testing.assert_close(network(found)(pixels), expected, rtol=1e-4, atol=1e-5)
        assert found.head is None


@pytest.mark.full
def test_its_module_is_a_source_as_well() -> None:
    module, pixels = hugging_face(1), torch.rand(3, 3, 8, 8)
    found = load(SourceSpec("a", module=module, **PLAIN))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels).logits, rtol=1e-4, atol=1e-5)
    assert (found.labels, found.arch.eps) == (("cat", "dog", "ox"), 1e-12)


@pytest.mark.full
def test_it_merges_with_a_vit_of_timm_and_timm_loads_the_result(tmp_path: Path) -> None:
    from timm.models import create_model

    hugging_face(1).save_pretrained(tmp_path / "hf")
    torch.save(torchvision_vit(2).state_dict(), tmp_path / "tv.pt")
    entries = [
        {"name": "hf", "checkpoint": str(tmp_path / "hf")},
        {"name": "tv", "checkpoint": str(tmp_path / "tv.pt"), "arch": arch()},
    ]
    result = merge(entries, method="average", output=tmp_path / "out")
    assert result.plan.arch.eps is None
    assert [note.split(":")[0].split(";")[0] for note in result.notes] == [
        "no data",
        "images are prepared as for 'hf'",
        "'hf'",
        "'tv'",
    ]
    loaded = create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(pixels), result.backbone()(pixels))


def test_a_config_that_lies_is_refused(tmp_path: Path) -> None:
    weights = {"embeddings.patch_embeddings.projection.weight": torch.zeros(12, 3, 4, 4)}
    save_file(weights, tmp_path / "model.safetensors")
    where = f"source 'a': {tmp_path}"
    for config, message in (
        (
            {"model_type": "vit"},
            f"{where} looks like Hugging Face's ViTModel, but misses its tensors. Download or save it again.",
        ),
        ({"model_type": "deit"}, f"{where} holds a model of Hugging Face transformers of the type 'deit', which "),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert refused(SourceSpec("a", checkpoint=str(tmp_path))).startswith(message)


# CLIP


@pytest.mark.parametrize("prefix", ["visual.", "module.visual.", ""])
def test_a_clip_tower_gives_its_own_features(prefix: str, tmp_path: Path) -> None:
    state, pixels = clip_tower(1, prefix), torch.rand(3, 3, 8, 8)
    save_file(state, tmp_path / "clip.safetensors")
    found = load(SourceSpec("a", arch=QUICK, checkpoint=str(tmp_path / "clip.safetensors"), **PLAIN))
    tower = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    torch.testing.assert_close(network(found)(pixels), clip_features(tower, pixels))
    assert found.arch.projection
    assert (found.arch.features, found.head) == (5, None)
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in load(replace_headers(tmp_path)).weights.items()}
    assert shapes == {n: t.shape for n, t in found.weights.items()}


def replace_headers(folder: Path) -> SourceSpec:
    return SourceSpec("a", arch=QUICK, checkpoint=str(folder / "clip.safetensors"), **PLAIN)


def test_a_clip_towers_pixels_are_clips_own(tmp_path: Path) -> None:
    state = clip_tower(1)
    save_file(state, tmp_path / "clip.safetensors")
    found = load(SourceSpec("a", arch=QUICK, checkpoint=str(tmp_path / "clip.safetensors")))
    pixels = torch.rand(3, 3, 8, 8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    torch.testing.assert_close(
        network(found)(pixels), clip_features(state, (pixels - mean) / std), rtol=1e-4, atol=1e-5
    )


def test_a_clip_tower_does_not_say_its_activation(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file(clip_tower(1), file)
    assert refused(SourceSpec("a", checkpoint=str(file))) == (
        f"source 'a': {file} holds a CLIP vision tower, whose activation (GELU or quick-GELU) the weights do not "
        "say. Pass models.sources.N.arch=vit_base_patch16_clip_quickgelu_224.openai for OpenAI's ViT-B/16, "
        "vit_base_patch16_clip_224.laion2b for LAION's, or another vit_*_clip_* name of timm."
    )


def test_a_projection_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file({**clip_tower(1), "visual.proj": torch.tensor(1.0)}, file)
    assert refused(SourceSpec("a", arch=QUICK, checkpoint=str(file))) == (
        f"source 'a': {file}: proj is [], a CLIP tower's is [width, features]. Download it again."
    )


def test_a_clip_tower_of_other_sizes_is_not_resampled_in_silence(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file(clip_tower(1), file)
    other = {**QUICK, "args": {**TINY, "img_size": 16}}
    assert refused(SourceSpec("a", arch=other, checkpoint=str(file))) == (
        f"source 'a': {file}: a CLIP tower with patches of [4, 4], 5 positions and width 12; "
        "models.sources.N.arch says [4, 4], 17 and 12. Choose its own name of timm."
    )


def test_a_tower_of_timm_inside_open_clip_brings_its_projection(tmp_path: Path) -> None:
    module = network(load_plain(tmp_path))
    state = {f"visual.trunk.{name}": tensor for name, tensor in module.state_dict().items()}
    projection = torch.randn(5, 12)
    save_file(
        {**state, "visual.head.proj.weight": projection, "text.x": torch.zeros(1)}, tmp_path / "c.safetensors"
    )
    found = load(SourceSpec("a", arch=arch(), checkpoint=str(tmp_path / "c.safetensors"), **PLAIN))
    pixels = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network(found)(pixels), module(pixels) @ projection.T)
    assert found.head is None


@pytest.mark.parametrize("head", ["head", "fc"])
def test_a_wrapper_that_calls_its_backbone_trunk_keeps_its_classifier(head: str, tmp_path: Path) -> None:
    source = load_plain(tmp_path)
    state = {f"trunk.{name}": tensor for name, tensor in source.weights.items()}
    classifier = torch.randn(7, 12)
    save_file({**state, f"{head}.weight": classifier}, tmp_path / "w.safetensors")
    found = load(SourceSpec("a", arch=arch(), checkpoint=str(tmp_path / "w.safetensors"), **PLAIN))
    assert found.head is not None
    assert torch.equal(found.head.weight, classifier)
    assert not found.arch.projection
    assert found.weights.keys() == source.weights.keys()
    assert found.notes == ()


def load_plain(folder: Path) -> Any:
    torch.save(torchvision_vit(1).state_dict(), folder / "tv.pt")
    return load(SourceSpec("tv", arch=arch(), checkpoint=str(folder / "tv.pt"), **PLAIN))


# What is known and not read

EXAMPLES = {
    "a convolutional stem of torchvision": "conv_proj.conv_last.weight",
    "torchvision's VisionTransformer with a representation layer": "heads.pre_logits.weight",
    "Hugging Face's CLIP or SigLIP": "vision_model.embeddings.class_embedding",
    "CLIP's ResNet": "visual.layer1.0.conv1.weight",
    "Hugging Face's DeiT": "deit.embeddings.distillation_token",
    "Hugging Face's DINOv2": "dinov2.encoder.layer.0.layer_scale1.lambda1",
    "Hugging Face's BEiT or Data2Vec": "beit.encoder.layer.0.lambda_1",
    "Hugging Face's Swin": "swin.encoder.layers.0.blocks.0.layernorm_before.weight",
}


@pytest.mark.parametrize("title", REFUSED)
def test_other_formats_are_refused_by_name(title: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({EXAMPLES[title]: torch.zeros(2)}, file)
    assert refused(SourceSpec("a", checkpoint=str(file))) == (
        f"source 'a': {file} holds {title}, which cannot be read. Of other libraries fsmerge reads torchvision's "
        "VisionTransformer, Hugging Face's ViTModel and ViTForImageClassification, and CLIP vision towers of "
        "OpenAI and open_clip. Load the model into timm, and save its state_dict."
    )


def test_each_layout_is_known_by_one_tensor() -> None:
    for layout in (TORCHVISION, TRANSFORMERS, CLIP, TRUNK):
        assert recognise({f"x.{layout.anchor}": torch.zeros(1)}, {}, "here") is layout
    assert recognise({"patch_embed.proj.weight": torch.zeros(1), "my_class_token": torch.zeros(1)}, {}, "") is None


def test_check_reads_other_layouts_from_headers(tmp_path: Path) -> None:
    entries = []
    for seed in (1, 2):
        save_file(torchvision_vit(seed).state_dict(), tmp_path / f"{seed}.safetensors")
        entries.append({"name": f"t{seed}", "arch": arch(), "checkpoint": str(tmp_path / f"{seed}.safetensors")})
    found = inspect(request(entries, "average", None, Hardware(device="cpu"), 0, overwrite=False))
    assert found.reasons == ()
    assert [row.classes for row in found.rows] == [5, 5]
    assert found.rows[0].mean == (0.485, 0.456, 0.406)
    assert found.rows[0].parameters == sum(t.numel() for t in torchvision_vit(1).state_dict().values())
    assert found.similarity is not None
    assert abs(found.similarity[0]) < 0.2
    assert "those of torchvision's public weights" in found.notes[0]
    same = [entries[0], {**entries[0], "name": "again"}]
    twin = inspect(request(same, "average", None, Hardware(device="cpu"), 0, overwrite=False))
    assert twin.similarity == pytest.approx((1.0,))
