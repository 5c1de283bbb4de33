"""`fsmerge evaluate`: messages where an evaluation is not possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fsmerge_cli import evaluate
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.errors import ConfigError, DataError, SourceError
from tests.support.evaluations import UNKNOWN_LABLES, timm_folder, write_random_images
from tests.support.sources import mlp_source

pytestmark = pytest.mark.full


MESSAGES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "nowhere",
        {},
        SourceError,
        "{0}/nowhere does not exist. Give the folder of a run, its merged/, or a checkpoint.",
    ),
    (
        "images",
        {},
        SourceError,
        "{0}/images holds no weights (model.safetensors, pytorch_model.bin, or another file of weights), and no "
        "merged/ of a run. Pass another folder, or a file.",
    ),
    (
        "no_head",
        {"data": "digits"},
        SourceError,
        "{0}/no_head has no head: neither heads.safetensors nor a classifier inside the weights, so there are no "
        "predictions to evaluate. Put a heads.safetensors beside the weights (TASK.weight, TASK.bias).",
    ),
    (
        "other",
        {"reading": {"labels": ["a", "b"]}},
        SourceError,
        "{0}/other: the head of task 'model' has 4 classes and 2 labels. Pass one label per class in "
        "model.labels=[...]",
    ),
    (
        "bare.safetensors",
        {"reading": {"arch": {"family": "mlp", "input_size": [1, 8, 8], "widths": [4]}}},
        SourceError,
        "{0}/bare.safetensors does not match its architecture: it lacks: fc0.bias. Check its "
        "config.json, or pass model.arch=...",
    ),
    (
        "bare.safetensors",
        {"data": "digits"},
        SourceError,
        "{0}/bare.safetensors does not specify its architecture. Put a config.json next to the weights or pass "
        "model.arch=..., a timm name (vit_base_patch16_224) or {family: ..., ...} (bert, convnext, eva, "
        "mlp, modernbert, resnet, vgg, vit).",
    ),
    (
        "other",
        {"data": "digits", "reading": {"labels": ["a", "b", "c", "d"]}},
        DataError,
        "data=digits: the labels of task 'model' are ['a', 'b', 'c', 'd'], and the data set has '0' to '9'. Pass "
        "model.labels=[...] or another data=...",
    ),
    (
        "other",
        {"data": {"name": "folder", "root": "{0}/images"}},
        DataError,
        "data=folder: no folder for task 'model' in {0}/images. Found: pets. "
        "Name one folder after each task, or put "
        "the images of all tasks directly into the root.",
    ),
    (
        "other",
        {"data": {"name": "folder", "root": "{0}/images"}, "reading": {"task": "pets"}},
        DataError,
        "data=folder: the class folders ant in {0}/images/pets/test are not labels of task 'pets' (0, 1, 2, 3). "
        "Rename the folders, pass model.labels=[...] (labels=data: the folders' names, sorted), or "
        "data.class_folders=none (test: only folders in test/ are classes) to use images without labels.",
    ),
    (
        "other",
        {"data": {"name": "folder", "root": "{0}/flat"}, "reading": {"task": "pets"}},
        DataError,
        "no test image has a label, so there is no accuracy to compute. Put the images into class folders.",
    ),
    (
        "other",
        {"data": {"name": "folder", "root": "{0}/trained"}, "reading": {"task": "pets", "labels": list("abcd")}},
        DataError,
        "data=folder has no test images for pets. Put some into TASK/test/, in class folders.",
    ),
    (
        "other",
        {},
        DataError,
        "no data: {0}/other is in no run's folder with a data set. Pass data=NAME (data.root=PATH for your own "
        "folder).",
    ),
    (
        "other",
        {"data": "digits", "sources": True},
        ConfigError,
        "--sources: {0}/other is in no run's folder (config.yaml), so its sources are unknown. "
        "Leave out --sources.",
    ),
    ("other", {"seed": -1}, ConfigError, "seed: should be a whole number from 0 on, got -1."),
    (
        "other",
        {"reading": {"lables": ["a"]}},
        ConfigError,
        UNKNOWN_LABLES,
    ),
    (
        "other",
        {"hardware": "multi_gpu"},
        ConfigError,
        "an evaluation runs in one process. Pass hardware.distributed=false, or hardware=gpu.",
    ),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    timm_folder(folder / "other")
    source = mlp_source("a", [8], 1)
    write_model(folder / "no_head", model_config(source.family, source.arch), source.weights, {}, {})
    save_file({"fc0.weight": torch.zeros(2, 3)}, folder / "bare.safetensors")
    write_random_images(folder / "images", {"pets": ("ant",)})
    write_random_images(folder / "trained", {"pets": tuple("abcd")}, "train")
    (folder / "flat/pets/test").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "flat/pets/test/0.png")
    return folder


@pytest.mark.parametrize(("model", "options", "kind", "message"), MESSAGES)
def test_an_evaluation_that_is_not_possible_is_reported(
    model: str, options: dict[str, Any], kind: type[Exception], message: str, models: Path
) -> None:
    given = json.loads(json.dumps(options).replace("{0}", str(models)))
    with pytest.raises(kind) as error:
        evaluate(models / model, **given)
    assert str(error.value) == message.replace("{0}", str(models))


def test_tasks_and_labels_of_a_run_are_not_renamed(digits_run: Path) -> None:
    with pytest.raises(SourceError) as error:
        evaluate(digits_run, reading={"task": "x"})
    assert str(error.value) == (
        f"{digits_run}/merged lists its tasks and labels in heads.safetensors (low, high). Leave out model.task, "
        "model.head and model.labels; tasks=[...] of evaluate and --task of predict and export select tasks."
    )
