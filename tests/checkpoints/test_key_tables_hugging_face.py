"""Checkpoints and modules of Hugging Face, compared with the real classes with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.key_tables import ACTIVATIONS
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused
from tests.support.third_party import (
    PIXELS,
    hugging_face,
    random_weights,
    torchvision_vit,
    vit_arch,
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_the_same_function_in_timm(name: str) -> None:
    from timm.layers.create_act import get_act_layer

    functions = pytest.importorskip("transformers").activations.ACT2FN
    own = get_act_layer(ACTIVATIONS[name] or "gelu")
    values = torch.linspace(-4, 4, 99)
    assert own is not None
    torch.testing.assert_close(own()(values), functions[name](values))


def test_without_a_config_the_class_token_is_a_guess(tmp_path: Path) -> None:
    module = hugging_face(1)
    save_file(module.state_dict(), tmp_path / "a.safetensors")
    entry = {"family": "vit", "args": {"num_heads": 3, "img_size": 8}}
    found = load(SourceSpec("a", checkpoint=str(tmp_path / "a.safetensors"), arch=entry, **PIXELS))
    assert found.notes[0] == (
        "'a': its class token is taken as features, not the mean of its patches; if that is wrong, pass "
        "models.sources.N.arch={family: vit, ...}"
    )


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [{}, {"hidden_act": "gelu_new"}, {"hidden_act": "quick_gelu"}, {"qkv_bias": False}, {"layer_norm_eps": 1e-3}],
)
def test_a_folder_of_hugging_face_gives_the_same_logits(options: dict[str, Any], tmp_path: Path) -> None:
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
    assert found.notes == (f"'a': its norms have eps={eps:g}, those of the merged model have timm's 1e-06",)
    assert (found.preprocessing.interpolation, found.preprocessing.crop_mode) == ("bicubic", "squash")


@pytest.mark.full
def test_a_state_dict_is_read_with_the_tensor_names_of_both_versions(tmp_path: Path) -> None:
    module, pixels = hugging_face(1, head=False), torch.rand(3, 3, 8, 8)
    module.save_pretrained(tmp_path / "saved")  # encoder.layer.0.attention.attention.query
    torch.save(module.state_dict(), tmp_path / "state.pt")  # layers.0.attention.q_proj, from version 5 on
    expected = module(pixels).last_hidden_state[:, 0]
    for path, own in (("saved", None), ("state.pt", {**vit_arch(), "eps": 1e-12})):
        found = load(SourceSpec("a", arch=own, checkpoint=str(tmp_path / path), **PIXELS))
        torch.testing.assert_close(network(found)(pixels), expected, rtol=1e-4, atol=1e-5)
        assert found.head is None


@pytest.mark.full
def test_vit_msn_has_the_layout_of_vit(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    module = random_weights(
        transformers.ViTMSNModel(transformers.ViTMSNConfig(**sizes, image_size=8, patch_size=4)), 1
    )
    module.save_pretrained(tmp_path)
    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for spec in (SourceSpec("a", checkpoint=str(tmp_path), **PIXELS), SourceSpec("a", module=module, **PIXELS)):
        found = load(spec)
        expected = module(pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(network(found)(pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_a_module_of_hugging_face_is_a_source() -> None:
    module, pixels = hugging_face(1), torch.rand(3, 3, 8, 8)
    found = load(SourceSpec("a", module=module, **PIXELS))
    assert found.head is not None
    torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels).logits, rtol=1e-4, atol=1e-5)
    assert (found.labels, found.arch.eps) == (("cat", "dog", "ox"), 1e-12)


@pytest.mark.full
def test_hugging_face_and_torchvision_are_merged_and_timm_loads_the_result(tmp_path: Path) -> None:
    from timm.models import create_model

    hugging_face(1).save_pretrained(tmp_path / "hf")
    torch.save(torchvision_vit(2).state_dict(), tmp_path / "tv.pt")
    entries = [
        {"name": "hf", "checkpoint": str(tmp_path / "hf")},
        {"name": "tv", "checkpoint": str(tmp_path / "tv.pt"), "arch": vit_arch()},
    ]
    result = merge(entries, method="average", output=tmp_path / "out")
    assert result.plan.arch.eps is None
    assert [note.split(":")[0].split(";")[0] for note in result.notes] == [
        "no data",
        "images are preprocessed as for 'hf'",
        "'hf'",  # the eps of its norms
        "'hf'",  # its mean and std, which no file states
        "'tv'",
    ]
    loaded = create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(pixels), result.backbone()(pixels))


def test_a_config_that_does_not_match_the_weights_is_refused(tmp_path: Path) -> None:
    weights = {"embeddings.patch_embeddings.projection.weight": torch.zeros(12, 3, 4, 4)}
    save_file(weights, tmp_path / "model.safetensors")
    where = f"source 'a': {tmp_path}"
    for config, message in (
        (
            {"model_type": "vit"},
            f"{where} looks like Hugging Face's ViTModel, but lacks some of its tensors. Download or save it "
            "again.",
        ),
        (
            {"model_type": "swin"},
            f"{where} contains a model of Hugging Face transformers of the type 'swin', which ",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert refused(SourceSpec("a", checkpoint=str(tmp_path))).startswith(message)
