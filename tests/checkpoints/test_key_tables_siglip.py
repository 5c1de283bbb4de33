"""SigLIP of Hugging Face, compared with the real classes with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused
from tests.support.third_party import PIXELS, random_weights

TINY = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
SIZES = {**TINY, "image_size": 8, "patch_size": 4}
TEXT = {**TINY, "vocab_size": 30, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}


def model(kind: str, seed: int = 1, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {**SIZES, **options}
    if kind == "SiglipVisionModel":
        return random_weights(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes)), seed)
    config = transformers.SiglipConfig(vision_config=sizes, text_config=TEXT)
    config.id2label = {0: "cat", 1: "dog", 2: "ox"}
    return random_weights(getattr(transformers, kind)(config), seed)


def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def expected(module: Any) -> torch.Tensor:
    vision = getattr(module, "vision_model", module)
    return vision(pixels()).pooler_output


@pytest.mark.full
@pytest.mark.parametrize("options", [{}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-3}])
@pytest.mark.parametrize("kind", ["SiglipVisionModel", "SiglipModel"])
def test_a_folder_and_a_module_give_the_features_of_the_library(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    module = model(kind, **options)
    module.save_pretrained(tmp_path)
    for spec in (SourceSpec("a", checkpoint=str(tmp_path), **PIXELS), SourceSpec("a", module=module, **PIXELS)):
        found = load(spec)
        torch.testing.assert_close(network(found)(pixels()), expected(module), rtol=1e-5, atol=1e-5)
        eps = options.get("layer_norm_eps")
        assert found.notes == (
            () if eps is None else ("'a': its norms have eps=0.001, those of the merged model have timm's 1e-06",)
        )


@pytest.mark.full
def test_the_files_of_version_4_and_the_public_config_are_read(tmp_path: Path) -> None:
    """Under vision_model, and with a config.json that leaves out what the class has as default."""
    sizes = {"hidden_size": 24, "num_attention_heads": 12}
    module = model("SiglipVisionModel", **sizes)
    state = {f"vision_model.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    state |= {"text_model.head.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(1)}
    save_file(state, tmp_path / "model.safetensors")
    public = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(public))
    found = load(SourceSpec("a", checkpoint=str(tmp_path), **PIXELS))
    torch.testing.assert_close(network(found)(pixels()), expected(module), rtol=1e-5, atol=1e-5)
    advice = "if that is wrong, pass models.sources.N.arch={family: vit, ...}"
    assert found.notes == (
        f"'a': square images of 8 x 8 pixels are assumed, from the number of its position embeddings; {advice}",
    )


@pytest.mark.full
def test_a_classifier_reads_the_mean_of_the_patches(tmp_path: Path) -> None:
    module = model("SiglipForImageClassification")
    module.save_pretrained(tmp_path)
    for spec in (SourceSpec("a", checkpoint=str(tmp_path), **PIXELS), SourceSpec("a", module=module, **PIXELS)):
        found = load(spec)
        assert found.head is not None
        assert found.labels == ("cat", "dog", "ox")
        torch.testing.assert_close(
            found.head(network(found)(pixels())), module(pixels()).logits, rtol=1e-5, atol=1e-5
        )
        assert found.notes == (
            "'a': its classifier reads the mean of the patches; its attention pooling is not used",
        )


def test_a_tower_without_pooling_has_the_mean_of_its_patches_as_features(tmp_path: Path) -> None:
    module = model("SiglipVisionModel", vision_use_head=False)
    module.save_pretrained(tmp_path)
    found = load(SourceSpec("a", checkpoint=str(tmp_path), **PIXELS))
    mean = module(pixels()).last_hidden_state.mean(1)
    torch.testing.assert_close(network(found)(pixels()), mean, rtol=1e-5, atol=1e-5)
    assert found.notes == ("'a': it has no attention pooling, so the mean of its patches is taken as features",)


@pytest.mark.full
def test_weights_without_a_config_are_read_with_a_note(tmp_path: Path) -> None:
    module = model("SiglipVisionModel")
    torch.save(module.state_dict(), tmp_path / "a.pt")
    given = {"family": "vit", "args": {"num_heads": 3, "img_size": 8}}
    found = load(SourceSpec("a", checkpoint=str(tmp_path / "a.pt"), arch=given, **PIXELS))
    torch.testing.assert_close(network(found)(pixels()), expected(module), rtol=1e-5, atol=1e-5)
    assert found.notes == (
        "'a': its attention pooling is taken as features, not the mean of its patches (arch={family: vit, args: "
        "{global_pool: avg}}), and its activation is assumed to be GELU with tanh; if that is wrong, pass "
        "models.sources.N.arch={family: vit, ...}",
    )
    given["args"] |= {"global_pool": "avg"}  # type: ignore[operator]
    found = load(SourceSpec("a", checkpoint=str(tmp_path / "a.pt"), arch=given, **PIXELS))
    mean = module(pixels()).last_hidden_state.mean(1)
    torch.testing.assert_close(network(found)(pixels()), mean, rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_two_towers_merge_and_timm_loads_the_result(tmp_path: Path) -> None:
    from timm.models import create_model

    for seed in (1, 2):
        model("SiglipVisionModel", seed).save_pretrained(tmp_path / f"m{seed}")
    entries = [{"name": f"m{seed}", "checkpoint": str(tmp_path / f"m{seed}"), **PIXELS} for seed in (1, 2)]
    for method in ("average", "fs_closed_form"):
        images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        result = merge(entries, method=method, data=images, output=tmp_path / method)
        loaded = create_model(f"local-dir:{tmp_path}/{method}/merged", pretrained=True).eval()
        torch.testing.assert_close(loaded(pixels()), result.backbone()(pixels()), rtol=1e-5, atol=1e-5)


def test_naflex_is_refused_by_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {**TINY, "num_patches": 4, "patch_size": 4}
    module = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes))
    module.save_pretrained(tmp_path / "folder")
    torch.save(module.state_dict(), tmp_path / "a.pt")
    for path in ("folder", "a.pt"):
        assert refused(SourceSpec("a", checkpoint=str(tmp_path / path), **PIXELS)) == (
            f"source 'a': {tmp_path}/{path} contains SigLIP 2 for images of any shape (NaFlex), whose positions "
            "are interpolated for every image. Only models of one size of images can be merged: take a checkpoint "
            "of a fixed resolution (siglip2-*-patch16-256), which transformers reads as SigLIP."
        )
