"""DeiT and DINOv2 of Hugging Face, compared with the real classes with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused
from tests.support.third_party import PIXELS, random_weights

TINY = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 8, "patch_size": 4}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "ox"}}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "DeiT": ("DeiT", {"intermediate_size": 20}),
    "DINOv2": ("Dinov2", {"mlp_ratio": 2}),
    "DINOv2 without biases": ("Dinov2", {"mlp_ratio": 2, "qkv_bias": False}),
    "DINOv2 with a gated MLP": ("Dinov2", {"use_swiglu_ffn": True}),
    "DINOv2 with registers": ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 3}),
}


def model(name: str, seed: int = 1) -> Any:
    transformers = pytest.importorskip("transformers")
    kind, options = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**TINY, **options, **LABELS)
    return random_weights(getattr(transformers, f"{kind}Model")(config), seed)


def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_and_a_module_give_the_features_of_the_library(name: str, tmp_path: Path) -> None:
    module = model(name)
    module.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    )
    expected = module(pixels()).last_hidden_state[:, 0]
    for spec in (SourceSpec("a", checkpoint=str(tmp_path)), SourceSpec("a", module=module, **PIXELS)):
        found = load(spec)
        torch.testing.assert_close(network(found)(pixels()), expected, rtol=1e-5, atol=1e-5)
        assert found.arch.eps == (1e-12 if name == "DeiT" else 1e-6)


@pytest.mark.full
def test_a_classifier_of_deit_has_its_labels(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DeiTConfig(**TINY, intermediate_size=20, **LABELS)
    module = random_weights(transformers.DeiTForImageClassification(config), 1)
    module.save_pretrained(tmp_path)
    found = load(SourceSpec("a", checkpoint=str(tmp_path), **PIXELS))
    assert (found.labels, found.head is not None) == (("cat", "dog", "ox"), True)
    torch.testing.assert_close(found.head(network(found)(pixels())), module(pixels()).logits, rtol=1e-4, atol=1e-5)


def test_a_head_that_reads_more_than_the_class_token_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(**TINY, mlp_ratio=2, **LABELS)
    transformers.Dinov2ForImageClassification(config).save_pretrained(tmp_path / "two")
    assert refused(SourceSpec("a", checkpoint=str(tmp_path / "two"), **PIXELS)) == (
        f"source 'a': {tmp_path}/two is a classifier on the class token of a DINOv2 beside the mean of its "
        "patches, and the features of a merged model are one of them. Save the backbone alone "
        "(model.dinov2.save_pretrained(FOLDER)) and train a head on it: fsmerge finetune model.checkpoint=FOLDER "
        "training.steps=0"
    )
