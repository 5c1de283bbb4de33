"""CLIP vision towers of Hugging Face, compared with the real classes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused
from tests.support.third_party import PIXELS, random_weights

TINY = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
SIZES = {**TINY, "image_size": 8, "patch_size": 4}
TEXT = {**TINY, "vocab_size": 30, "max_position_embeddings": 8}


def tower(kind: str, act: str = "quick_gelu") -> Any:
    transformers = pytest.importorskip("transformers")
    if kind == "CLIPModel":
        config = transformers.CLIPConfig(
            text_config=TEXT, vision_config={**SIZES, "hidden_act": act}, projection_dim=5
        )
    else:
        config = transformers.CLIPVisionConfig(**SIZES, hidden_act=act, projection_dim=5)
    return random_weights(getattr(transformers, kind)(config), 1)


@pytest.mark.full
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"])
def test_a_folder_gives_the_features_of_the_library(kind: str, act: str, tmp_path: Path) -> None:
    module, pixels = tower(kind, act), torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    module.save_pretrained(tmp_path)
    if kind == "CLIPVisionModel":
        expected = module(pixels).pooler_output
    elif kind == "CLIPModel":
        expected = module.visual_projection(module.vision_model(pixels).pooler_output)
    else:
        expected = module(pixels).image_embeds
    found = load(SourceSpec("a", checkpoint=str(tmp_path), **PIXELS))
    torch.testing.assert_close(network(found)(pixels), expected, rtol=1e-5, atol=1e-5)
    assert (found.head, found.arch.projection) == (None, kind != "CLIPVisionModel")


def test_a_classifier_on_the_patches_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=SIZES, projection_dim=5)
    transformers.CLIPForImageClassification(config).save_pretrained(tmp_path)
    assert refused(SourceSpec("a", checkpoint=str(tmp_path), **PIXELS)) == (
        f"source 'a': {tmp_path} is a CLIPForImageClassification, whose classifier reads the mean of the patches "
        "before the last norm, which no model of timm does. Save the tower alone "
        "(model.vision_model.save_pretrained(FOLDER)) and train a head on it: fsmerge finetune "
        "model.checkpoint=FOLDER training.steps=0"
    )
