"""A small base, an adapter of PEFT trained on it, and both in a folder of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fsmerge_cli import load_source

ARGS = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 12, "depth": 2, "num_heads": 3}
NAME = "vit_tiny_patch16_224"


def write_base(folder: Path, classes: int = 5) -> None:
    torch.manual_seed(0)
    folder.mkdir()
    model = timm.create_model(NAME, num_classes=classes, **ARGS)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": ARGS}))


def adapted(base: Path, folder: Path, **options: Any) -> Any:
    """The model of PEFT whose adapter is saved in `folder`, with three classes and random values."""
    peft = pytest.importorskip("peft")
    model = timm.create_model(NAME, num_classes=5, **ARGS)
    model.load_state_dict(load_file(base / "model.safetensors"))
    torch.manual_seed(1)
    model.reset_classifier(3)
    found = peft.get_peft_model(model, peft.LoraConfig(**{"r": 2, "lora_alpha": 6, **options}))
    with torch.no_grad():
        for name, tensor in found.named_parameters():
            if "lora" in name:
                tensor.normal_(std=0.3)
    found.save_pretrained(folder)
    return found


def source(place: Path, **keys: Any) -> Any:
    given = {"base": str(place / "base"), "labels": ["x", "y", "z"], "mean": [0], "std": [1], **keys}
    return load_source(place / "adapter", name="a", **given)


def stated(**changes: Any) -> Callable[[], None]:
    def change() -> None:
        file = Path("adapter/adapter_config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], None]:
    def rewrite() -> None:
        file = "adapter/adapter_model.safetensors"
        content = load_file(file)
        change(content)
        save_file(content, file)

    return rewrite
