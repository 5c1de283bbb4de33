"""The front matter of a model card has what the hub reads: names, licence, sources of the hub, accuracies."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from huggingface_hub import ModelCard

from fsmerge_cli.reporting.front_matter import base_models, front_matter, hub_task
from tests.support.pages import HOSTILE, evaluation


def found(content: dict[str, Any], library: str = "timm", heads: bool = True) -> dict[str, Any]:
    text = front_matter(content, library, hub_task("image", heads))
    assert text.startswith("---\n")
    assert text.endswith("\n---\n")
    return ModelCard(text + "\n# Title").data.to_dict()


def test_a_model_without_hub_sources_and_licence() -> None:
    content = evaluation(labelled=False)
    assert found(content, "plain", heads=False) == {
        "library_name": "pytorch",
        "license": "unknown",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["merge", "fsmerge", "fs_merge"],
    }


def test_a_model_of_hub_sources_with_accuracies_and_hostile_names() -> None:
    content = copy.deepcopy(evaluation(HOSTILE[:2]))
    content["config"]["output"] = {"license": "mit"}
    content["config"]["models"]["sources"] = [
        {"arch": "vit_base_patch16_224.augreg_in21k", "checkpoint": None},
        {"arch": "hf-hub:timm/vit_small", "checkpoint": None},
        {"arch": "vit_base_patch16_224", "checkpoint": "/home/user/pets"},
        {"arch": {"family": "mlp"}, "checkpoint": None, "recipe": {}},
    ]
    data = found(content)
    assert data["license"] == "mit"
    assert data["base_model"] == ["timm/vit_base_patch16_224.augreg_in21k", "timm/vit_small"]
    assert data["base_model_relation"] == "merge"
    (model,) = data["model-index"]
    assert [(own["dataset"]["name"], own["metrics"][0]["value"]) for own in model["results"]] == [
        ("-script-alert(1)--script-", 0.865),
        ("---img src---evil.example-x onerror-alert(1)-", 0.865),
    ]
    assert yaml.safe_load(front_matter(content, "timm").strip("-\n"))["library_name"] == "timm"


def test_a_source_of_a_checkpoint_has_no_name_on_the_hub() -> None:
    assert base_models({}) == []
    assert base_models({"models": {"sources": [{"arch": None, "checkpoint": "hf-hub:a/b"}]}}) == ["a/b"]
    assert base_models({"models": {"sources": [{"arch": "vit_b", "checkpoint": "pets"}]}}) == []
