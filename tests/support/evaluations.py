"""Models and images for evaluations, and what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file

Bytes = dict[str, bytes]


def file_bytes(folder: Path) -> Bytes:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def rows_of(digits_run: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((digits_run / "evaluation.json").read_text())["rows"]
    return rows


def write_random_images(
    root: Path, tasks: dict[str, tuple[str, ...]], split: str = "test", count: int = 4
) -> Path:
    """Write random grey images into class folders."""
    random = torch.Generator().manual_seed(len(split))
    for task, labels in tasks.items():
        for label in labels:
            (root / task / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (8, 8), generator=random, dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(root / task / split / label / f"{i}.png")
    return root


def timm_folder(folder: Path, **rows_of: Any) -> torch.nn.Module:
    """Write a timm ViT in the layout of `timm.models.save_for_hf`, with its classifier inside."""
    args = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **args).eval()
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 8, 8], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 1.0}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": args, "num_classes": 4, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps({**config, **rows_of}))
    return model


UNKNOWN_LABLES = (
    "unknown key in model 'lables'. Did you mean 'labels'? Available: arch, base, ema, head, input_size, labels, "
    "mean, normalize, prefix, std, task."
)
