"""`fsmerge finetune`: messages about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.common.errors import (
    ConfigError,
    DataError,
    OutputError,
    SourceError,
)
from tests.support.finetuning import (
    small_finetune,
    write_class_folders,
)

pytestmark = pytest.mark.full


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"training": {"steps": 0, "head_steps": 0}},
        ConfigError,
        "training.head_steps and training.steps are both 0. Give one of them, or both.",
    ),
    ({"training": {"lr": 0}}, ConfigError, "training.lr: should be greater than 0, got 0."),
    (
        {"model": {"labels": ("0",)}},
        ConfigError,
        "model.labels: a classifier needs two or more different classes, and there are 1 (0). Pass a list "
        "(model.labels=[cat,dog]), a file (.txt, .json).",
    ),
    (
        {"model": {"labels": "greek"}},
        ConfigError,
        "model.labels: unknown label set 'greek'. Available: none. Or give a list, or a file (.txt, .json).",
    ),
    (
        {"model": {"start": "pretrained"}},
        ConfigError,
        "model: no weights to start from. Pass model.checkpoint=PATH, a timm name with the tag of its weights "
        "(vit_base_patch16_224.augreg_in21k), or model.start=random.",
    ),
    (
        {"arch": "vit_tiny_patch16_224", "model": {"start": "pretrained"}},
        ConfigError,
        "model: no weights to start from. Pass model.checkpoint=PATH, a timm name with the tag of its weights "
        "(vit_tiny_patch16_224.augreg_in21k, vit_tiny_patch16_224.augreg_in21k_ft_in1k), or model.start=random.",
    ),
    (
        {"arch": None},
        ConfigError,
        "model.arch is missing: model.start=random needs a timm name, or {family: ...}.",
    ),
    (
        {"model": {"checkpoint": "x.safetensors"}},
        ConfigError,
        "model.start=random and model.checkpoint exclude each other. Leave one of them out.",
    ),
    (
        {"model": {"mean": (0.5,), "ema": False, "input_size": 8}},
        ConfigError,
        "model.start=random reads no checkpoint, to which model.ema, model.input_size would apply. "
        "Leave it out (the image size belongs into model.arch).",
    ),
    (
        {"model": {"checkpoint": "nowhere", "start": "pretrained"}},
        SourceError,
        "source 'low': nowhere does not exist. Check model.checkpoint.",
    ),
    (
        {"data": {"images_per_task": 0}},
        DataError,
        "data.images_per_task=0 leaves no training images. Pass a number, or all.",
    ),
    (
        {"hardware": {"distributed": True}},
        ConfigError,
        "finetune runs in one process. Pass hardware.distributed=false, or hardware=gpu.",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_a_mistake_gets_one_message(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        small_finetune(**options)
    assert str(error.value) == message


def test_the_start_and_the_images_are_never_replaced(tmp_path: Path) -> None:
    small_finetune(output=tmp_path / "out")
    with pytest.raises(OutputError, match=r"model\.checkpoint lies in .*out, which output\.overwrite=true"):
        small_finetune(
            model={"checkpoint": str(tmp_path / "out"), "start": "pretrained", "arch": None},
            output=tmp_path / "out",
            overwrite=True,
        )
    write_class_folders(tmp_path / "out")
    with pytest.raises(OutputError, match=r"data\.root lies in .*out, which output\.overwrite=true"):
        small_finetune(
            task="pets",
            labels=("cat", "dog"),
            data={"name": "folder", "root": str(tmp_path / "out")},
            output=tmp_path / "out",
            overwrite=True,
        )
    assert (tmp_path / "out/pets/cat/0.png").is_file()
