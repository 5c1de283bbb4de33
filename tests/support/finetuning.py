"""Short fine-tuning runs on small models and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.runs.finetune import finetune
from fsmerge_cli.runs.finetuned import Finetuned

MLP = {"family": "mlp", "input_size": [1, 8, 8], "widths": [16, 16]}


VIT = {
    "family": "vit",
    "name": "vit_tiny_patch16_224",
    "args": {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 12, "depth": 2, "num_heads": 3},
}


LOW = ("0", "1", "2", "3", "4")


CPU = {"device": "cpu", "threads": 1}


def small_finetune(arch: Any = MLP, task: str = "low", labels: tuple[str, ...] = LOW, **options: Any) -> Finetuned:
    model = {"arch": arch, "start": "random", "task": task, "labels": labels, **options.pop("model", {})}
    training = {"head_steps": 20, "steps": 40, "lr": 0.003, **options.pop("training", {})}
    data = {"name": "digits", **options.pop("data", {})}
    return finetune(
        model, data=data, training=training, hardware={**CPU, **options.pop("hardware", {})}, **options
    )


def weight_bytes(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "heads.safetensors").read_bytes()


class StopError(Exception):
    """Stops a run like a kill, but in this process."""


def stop_after(count: int) -> Progress:
    """A progress that raises StopError at the training step `count`, of all phases together."""
    steps = 0

    def progress(event: Event) -> None:
        nonlocal steps
        steps += event.phase.startswith("train")
        if steps == count:
            raise StopError

    return progress


def write_class_folders(root: Path, task: str = "pets", classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for number, name in enumerate(classes):
        (root / task / name).mkdir(parents=True)
        for i in range(30):
            Image.new("L", (8, 8), 200 * number + i).save(root / task / name / f"{i}.png")
