"""DINOv3 of Hugging Face, compared with the real class with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused
from tests.support.third_party import PIXELS, random_weights

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}

MODELS: dict[str, dict[str, Any]] = {
    "as published": {"num_register_tokens": 4},
    "without biases": {"query_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False},
    "one bias": {"query_bias": False},
    "a gated MLP": {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 1},
    "a gated MLP of an odd width": {"use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 21},
    "biases of keys": {"key_bias": True, "query_bias": False},
    "other positions": {"rope_theta": 7.0, "image_size": [8, 12], "layer_norm_eps": 1e-3},
}


def model(options: dict[str, Any], seed: int = 1) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(**{**TINY, "intermediate_size": 24, **options})
    return random_weights(transformers.DINOv3ViTModel(config), seed)


def pixels(width: int = 8) -> torch.Tensor:
    return torch.rand(3, 3, 8, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_a_state_dict_and_a_module_give_the_features_of_the_library(name: str, tmp_path: Path) -> None:
    module = model(MODELS[name])
    module.save_pretrained(tmp_path / "saved")  # layer.0.norm1
    processor = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    (tmp_path / "saved" / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "state").mkdir()
    torch.save(module.state_dict(), tmp_path / "state" / "model.pt")  # model.layer.0.norm1, from version 5 on
    (tmp_path / "state" / "config.json").write_bytes((tmp_path / "saved" / "config.json").read_bytes())
    images = pixels(12 if name == "other positions" else 8)
    expected = module(images).pooler_output
    for spec in (
        SourceSpec("a", checkpoint=str(tmp_path / "saved")),
        SourceSpec("a", checkpoint=str(tmp_path / "state"), **PIXELS),
        SourceSpec("a", module=module, **PIXELS),
    ):
        found = load(spec)
        torch.testing.assert_close(network(found)(images), expected, rtol=1e-5, atol=1e-5)
        eps = MODELS[name].get("layer_norm_eps", 1e-5)
        assert [note for note in found.notes if "eps" in note] == (
            [] if eps == 1e-5 else ["'a': its norms have eps=0.001, those of the merged model have timm's 1e-05"]
        )


def test_weights_without_a_config_are_read_as_the_published_models(tmp_path: Path) -> None:
    options = {"hidden_size": 384, "num_attention_heads": 6, "patch_size": 16, "num_hidden_layers": 12}
    module = model({**options, "intermediate_size": 8})
    torch.save(module.state_dict(), tmp_path / "a.pt")
    found = load(SourceSpec("a", checkpoint=str(tmp_path / "a.pt"), **PIXELS))
    advice = "if that is wrong, pass models.sources.N.arch={family: vit, ...}"
    assert found.notes == (
        f"'a': 6 attention heads are assumed, as in the published models of width 384; {advice}",
        f"'a': square images of 224 pixels are assumed, as in the published models; {advice}",
        f"'a': its class token is taken as features, not the mean of its patches; {advice}",
        "'a': not used, without effect on the features: mask_token",
    )
    assert (found.arch.name, found.arch.args["num_heads"]) == ("vit_small_patch16_dinov3_qkvb", 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act in config.json is 'relu'; an MLP of timm's DINOv3 has gelu."),
        (
            {"use_gated_mlp": True},
            "hidden_act in config.json is 'gelu'; a gated MLP of timm's DINOv3 has silu.",
        ),
        ({"rope_theta": 0.0}, "rope_theta in config.json should be a number above 0, it is 0.0."),
    ],
)
def test_what_timm_does_not_have_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model({}).save_pretrained(tmp_path)
    if "use_gated_mlp" in options:
        model(options).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **options}))
    tail = "" if "rope_theta" in options else " Only that can be merged."
    assert (
        refused(SourceSpec("a", checkpoint=str(tmp_path), **PIXELS)) == f"source 'a': {tmp_path}: {message}{tail}"
    )


def test_a_file_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    state = {n: t for n, t in model({}).state_dict().items() if ".mlp." not in n}
    torch.save(state, tmp_path / "a.pt")
    assert refused(SourceSpec("a", checkpoint=str(tmp_path / "a.pt"), **PIXELS)) == (
        f"source 'a': {tmp_path}/a.pt looks like Hugging Face's DINOv3ViTModel, but lacks some of its tensors. "
        "Download or save it again."
    )


@pytest.mark.full
def test_it_merges_with_a_dinov3_of_timm_and_timm_loads_the_result(tmp_path: Path) -> None:
    from timm.models import create_model

    model({"num_register_tokens": 4}).save_pretrained(tmp_path / "hf")
    args = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}
    own = random_weights(
        create_model("vit_small_patch16_dinov3_qkvb", global_pool="token", num_classes=3, **args), 2
    )
    entries = [
        {"name": "hf", "checkpoint": str(tmp_path / "hf"), **PIXELS},
        {"name": "timm", "module": own, "labels": ["a", "b", "c"], **PIXELS},
    ]
    for method in ("average", "weight_matching"):
        result = merge(entries, method=method, output=tmp_path / method)
        loaded = create_model(f"local-dir:{tmp_path}/{method}/merged", pretrained=True).eval()
        torch.testing.assert_close(loaded(pixels()), result.backbone()(pixels()), rtol=1e-5, atol=1e-5)
