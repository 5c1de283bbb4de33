"""The sources: vision transformers trained on the tasks, from different random initialisations or from one parent.

The weights are stored in docs/results/sources in float16, so that new rows can be compared with existing ones. A
missing source is trained by `fsmerge finetune` (half an hour to an hour on one thread for CIFAR-10).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fsmerge_cli.cli import main as fsmerge
from fsmerge_cli.models.source_spec import SourceSpec
from scripts.benchmark.sources import SOURCES, store
from scripts.natural.tasks import TASKS, archive

WIDTH, DEPTH, HEADS = 128, 6, 4

STEPS = {
    **{"cifar10": 9400, "fashion": 2400, "mnist": 2000, "animals": 6000, "vehicles": 4000},
    **{"deer_horse": 2400, "ship_truck": 2400},
    **{"fashion_of_cifar10": 600, "mnist_of_cifar10": 400, "animals_of_cifar10": 400, "vehicles_of_cifar10": 400},
}
"""Training steps of 64 images, by task."""

SEEDS = {
    **{"cifar10": 1, "fashion": 2, "animals": 3, "vehicles": 4, "mnist": 5},
    **{"deer_horse": 21, "ship_truck": 22},
    **{"fashion_of_cifar10": 31, "mnist_of_cifar10": 32, "animals_of_cifar10": 33, "vehicles_of_cifar10": 34},
}
"""By task: seed of the initialisation, the batches and the augmentation."""

PARENT = "cifar10"
"""The source of which those of the tasks `..._of_cifar10` are fine-tuned."""

AUGMENT = {"mnist": "shift", "mnist_of_cifar10": "shift"}
"""Augmentation of tasks that a mirrored image is none of; crop_flip for the others."""

RECIPE = (
    "data.validation=0.02",
    "training.head_steps=0",
    "training.batch_size=64",
    "training.optimizer=muon",
    "training.lr=0.002",
    "training.matrix_lr=0.006",
    "training.anneal=cosine",
    "training.warmup=0.05",
    "training.label_smoothing=0.05",
    "training.patch_drop=0.5",
    "training.plain_share=0.15",
    "training.ema=0.998",
    "training.patience=null",
)

FINETUNING = (
    "training.head_steps=100",
    "training.lr=0.0005",
    "training.matrix_lr=0.0015",
    "training.patch_drop=0.0",
)
"""What differs where the parent is fine-tuned."""


def parent(task: str) -> Path | None:
    """The folder of the network that the source of a task is fine-tuned from; None: random weights."""
    return stored(PARENT) if task.endswith(f"_of_{PARENT}") else None


def stored(task: str) -> Path:
    """The folder of a source."""
    return SOURCES / f"{task}_{WIDTH}"


def accuracy(task: str) -> float | None:
    """Top-1 accuracy of a source on the test images of its task, as measured at the end of its training."""
    path = stored(task) / "training.json"
    return float(json.loads(path.read_text())["top1"]) if path.is_file() else None


def command(task: str, root: Path, work: Path, extra: Sequence[str] = ()) -> list[str]:
    """The arguments of `fsmerge` that train the source of `task`; archives are made in `work`/tasks."""
    train, test = (archive(root, work / "tasks", task, split) for split in ("train", "test"))
    args = f"{{img_size:32,patch_size:4,embed_dim:{WIDTH},depth:{DEPTH},num_heads:{HEADS}}}"
    start = [f"model.arch={{family:vit,name:vit_tiny_patch16_224,args:{args}}}", "model.start=random"]
    start += ["model.mean=[0.5]", "model.std=[0.25]"]
    if (base := parent(task)) is not None:
        start = [f"model.checkpoint={base}"]
    return [
        "finetune",
        *start,
        f"model.task={task}",
        f"model.labels=[{','.join(TASKS[task].classes)}]",
        "data=tensors",
        f"data.train={train}",
        f"data.test={test}",
        f"data.augment={AUGMENT.get(task, 'crop_flip')}",
        *RECIPE,
        *(FINETUNING if base is not None else ()),
        f"training.steps={STEPS[task]}",
        f"seed={SEEDS[task]}",
        "hardware.threads=1",
        "hardware.precision=bf16",
        "hardware.eval_batch=250",
        "resume=true",
        f"output.dir={work / 'sources' / task}",
        *extra,
    ]


def ensure(task: str, root: Path, work: Path) -> Path:
    """The folder of the source of `task`, trained and stored where it is missing."""
    folder = stored(task)
    if not (folder / "training.json").is_file():  # written last
        # On a CPU the fused kernel is the slower one in bf16: half as many images per second.
        os.environ.setdefault("TIMM_FUSED_ATTN", "0")
        sys.stderr.write(f"training the source of {task}\n")
        if code := fsmerge(command(task, root, work)):
            raise SystemExit(f"training the source of {task}: exit code {code}")
        keep(task, work / "sources" / task)
    return folder


def keep(task: str, trained: Path) -> None:
    """Store a trained source in float16, with its accuracy and the seconds of its training."""
    store(SourceSpec(name=task, checkpoint=str(trained)), stored(task))
    found = json.loads((trained / "evaluation.json").read_text())
    own = found["rows"][task]["tasks"][task]
    facts = {"top1": own["top1"], "test_images": own["count"], "steps": found["cost"]["steps"]}
    resumed = found["cost"]["images_per_second"] is None  # then the seconds are those of the last part only
    facts["seconds"] = None if resumed else round(found["cost"]["seconds"]["fit"])
    (stored(task) / "training.json").write_text(json.dumps(facts) + "\n")
