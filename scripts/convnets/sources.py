"""ResNets of 20 layers trained on CIFAR-10 from different random initialisations, by timm's own module.

timm's ResNet halves the resolution twice before its first stage, so images of 32 x 32 pixels are shown at 64 x 64:
3 convolutions of the deep stem, 4 stages of 2 blocks (16, 32, 64 and 128 channels, times the width) and the head.
The weights are stored in docs/results/sources in float16. A missing source of width 1 takes about 20 minutes on
one thread.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from scripts.benchmark.sources import SOURCES
from scripts.natural.tasks import CIFAR, SIZE, TASKS, PhotoTask, archive

SCALE = 2
"""Images are shown at this multiple of their size."""

HALVES = {"first_five": CIFAR[:5], "last_five": CIFAR[5:]}
"""Tasks by name: the classes of CIFAR-10, in order."""

SEEDS = {"cifar10_a": 31, "cifar10_b": 32, "first_five": 33, "last_five": 34}
"""By source: seed of the initialisation, the batches and the augmentation."""

GROUPS = {"cifar10_twice": ("cifar10_a", "cifar10_b"), "cifar10_halves": ("first_five", "last_five")}

EPOCHS, BATCH, RATE, DECAY = 20, 128, 0.1, 5e-4
WARMUP = 0.1
"""Share of the steps with a rising rate; it falls to 0 along a line afterwards."""

PAD = 4
"""Pixels by which a training image is shifted at most; it is mirrored in half of the cases."""

TASKS |= {name: PhotoTask("cifar10", CIFAR, classes) for name, classes in HALVES.items()}


def stored(name: str, width: int) -> Path:
    """The folder of a source."""
    return SOURCES / f"{name}_resnet20_w{width}"


def task_of(name: str) -> str:
    """The task of a source: cifar10_a and cifar10_b have the same."""
    return name if name in HALVES else "cifar10"


def ensure(name: str, width: int, root: Path, work: Path) -> Path:
    """The folder of a source, trained and stored where it is missing."""
    folder = stored(name, width)
    if not (folder / "training.json").is_file():  # written last
        torch.set_num_threads(1)
        torch.manual_seed(SEEDS[name])
        started = time.perf_counter()
        model = network(width, len(TASKS[task_of(name)].classes)).to(memory_format=torch.channels_last)
        train, test = (archive(root, work / "tasks", task_of(name), split) for split in ("train", "test"))
        steps = fit(model, *_images(train), name)
        facts = {"top1": accuracy(model, *_images(test)), "steps": steps}
        save(model, name, width, facts | {"seconds": round(time.perf_counter() - started)})
    return folder


def arguments(width: int) -> dict[str, Any]:
    """Arguments of timm's `resnet18d`."""
    return {"stem_width": 8 * width, "channels": [n * width for n in (16, 32, 64, 128)]}


def network(width: int, classes: int) -> nn.Module:
    """The network with a head of `classes` rows."""
    return timm.create_model("resnet18d", num_classes=classes, **arguments(width))


def fit(model: nn.Module, images: Tensor, labels: Tensor, name: str) -> int:
    """Train in place with momentum and a rate that rises and falls; the number of steps."""
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=DECAY, nesterov=True)
    rate = lambda step: min(step / (WARMUP * steps), (steps - step) / ((1 - WARMUP) * steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step in range(steps):
        if step % (len(images) // BATCH) == 0:
            order = torch.randperm(len(images))
        rows = order[(step * BATCH) % (len(images) // BATCH * BATCH) :][:BATCH]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(shown(augmented(images[rows])))
        loss = F.cross_entropy(logits.float(), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            sys.stderr.write(f"{name}: step {step} of {steps}, loss {loss.item():.3f}\n")
    return steps


def augmented(images: Tensor) -> Tensor:
    """Shifted by up to PAD pixels and mirrored at random, image by image."""
    padded = F.pad(images, (PAD, PAD, PAD, PAD))
    count = len(images)
    down, right = torch.randint(0, 2 * PAD + 1, (2, count))
    rows = down[:, None] + torch.arange(SIZE)
    columns = right[:, None] + torch.arange(SIZE)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    place = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[place, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def shown(images: Tensor) -> Tensor:
    """Pixels in 0..1 at the size of the network, minus 0.5 and divided by 0.25. images: uint8 [n, 3, h, w]."""
    size = [SCALE * side for side in images.shape[-2:]]
    enlarged = F.interpolate(images.float() / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
    return ((enlarged - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in per cent."""
    model.eval()
    right = sum(int((model(shown(x)).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500)))
    return 100 * right / len(images)


def save(model: nn.Module, name: str, width: int, facts: dict[str, Any]) -> None:
    """Write the source in float16 as timm's local-dir reads it."""
    folder, classes = stored(name, width), TASKS[task_of(name)].classes
    folder.mkdir(parents=True, exist_ok=True)
    side = SCALE * SIZE
    stated = {
        "architecture": "resnet18d",
        "model_args": arguments(width),
        "num_classes": len(classes),
        "label_names": list(classes),
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "num_classes": len(classes),
        },
    }
    half = {key: t.half() if t.is_floating_point() else t for key, t in model.state_dict().items()}
    save_file({key: tensor.contiguous() for key, tensor in half.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(stated, indent=1) + "\n")
    (folder / "training.json").write_text(json.dumps(facts) + "\n")


def _images(path: Path) -> tuple[Tensor, Tensor]:
    """uint8 [n, 3, 32, 32] and labels [n]."""
    with np.load(path) as file:
        return torch.from_numpy(file["images"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(file["labels"])
