"""Peak memory of merging four ViT-L/16-sized sources on two CPU cores; the bar is 16 GB.

    python -m scripts.speed.scale            # about 5 GB of temporary files, several minutes (`make scale`)
    python -m scripts.speed.scale --small    # tiny sources, seconds: only tests the script

Writes checkpoints with random weights in timm's layout and a few random images, runs `fsmerge merge` on them in a
child process with two threads, and samples its resident memory until it ends: the peak, and its anonymous and
file-backed parts (memory-mapped checkpoints and libraries, which the kernel can drop).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from scripts.speed.measure import child_environment, device_name, memory, met, today, versions, write_json

OUTPUT = Path("docs/scale.json")
BAR_GB = 16.0
THREADS = 2
INTERVAL = 0.05
STDERR = 2  # the child's table goes to stderr, like its progress
TASKS = ("a", "b", "c", "d")
LABELS = ("left", "right")
LARGE: dict[str, Any] = {"architecture": "vit_large_patch16_224", "model_args": {}, "size": 224}
SMALL: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32},
    "size": 32,
}
IMAGES = {"train": 4, "test": 2}  # per task


def write_source(folder: Path, kind: dict[str, Any], seed: int) -> int:
    """Write one checkpoint with random weights in timm's layout; returns its number of parameters."""
    from timm.models import create_model

    torch.manual_seed(seed)
    model = create_model(kind["architecture"], num_classes=len(LABELS), **kind["model_args"])
    folder.mkdir(parents=True)
    config = {
        "architecture": kind["architecture"],
        "model_args": kind["model_args"],
        "num_classes": len(LABELS),
        "pretrained_cfg": {"input_size": [3, kind["size"], kind["size"]], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return sum(p.numel() for p in model.parameters())


def write_images(root: Path, size: int, tasks: Sequence[str] = TASKS, images: Mapping[str, int] = IMAGES) -> None:
    """Write a few random images per task, in class folders."""
    random = np.random.default_rng(0)
    for task in tasks:
        for split, count in images.items():
            for i in range(count):
                folder = root / task / split / LABELS[i % len(LABELS)]
                folder.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def write_models(folder: Path, checkpoints: Path) -> None:
    """Write the YAML of four checkpoints: +models=four in a --config-dir."""
    sources = [
        {"name": task, "checkpoint": str(checkpoints / task), "labels": list(LABELS), "arch": None}
        for task in TASKS
    ]
    (folder / "models").mkdir(parents=True)
    (folder / "models/four.yaml").write_text(yaml.safe_dump({"sources": sources}))


def command(folder: Path) -> list[str]:
    """The measured command."""
    script = Path(sys.executable).with_name("fsmerge")
    ours = [str(script)] if script.is_file() else [sys.executable, "-m", "fsmerge_cli"]
    return [
        *ours,
        "merge",
        f"--config-dir={folder / 'configs'}",
        "+models=four",
        "data=folder",
        f"data.root={folder / 'images'}",
        f"data.images_per_task={IMAGES['train']}",
        "method=fs_merge",
        "method.maps=low_rank",
        "method.finetune_share=0.0",  # afterwards a step would be one of distillation
        "method.start=first",
        "method.targets=own",
        "method.augment=none",
        "method.mixup=0.0",
        "method.rank=12",
        "method.optimizer=adamw",
        "method.steps=3",
        "method.batch_size=4",
        "hardware=cpu",
        "hardware.checkpointing=true",
        f"hardware.threads={THREADS}",
        f"output.dir={folder / 'merged'}",
    ]


def watched(arguments: Sequence[str], cache: Path, stop_at: float) -> tuple[dict[str, int], float, str]:
    """Run a child process; returns its peaks in bytes (VmHWM, max RssAnon, max RssFile), seconds and how it ended.

    AnonAtPeak, FileAtPeak: the parts at the largest sampled resident size. A child above `stop_at` GB is stopped,
    before the kernel runs out of memory and kills another process.
    """
    environment = {**child_environment(THREADS), "FSMERGE_CACHE": str(cache)}
    start = time.perf_counter()
    peaks: dict[str, int] = {}
    end = "done"
    child = subprocess.Popen(arguments, env=environment, stdout=STDERR)
    try:
        while child.poll() is None:
            now = memory(child.pid)
            if now.get("VmRSS", 0) > peaks.get("VmRSS", 0):
                peaks |= {"AnonAtPeak": now["RssAnon"], "FileAtPeak": now["RssFile"]}
            peaks |= {name: max(value, peaks.get(name, 0)) for name, value in now.items()}
            if now.get("VmRSS", 0) > stop_at * 1e9:
                end = f"stopped above {stop_at:g} GB"
                child.kill()
            time.sleep(INTERVAL)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if child.returncode > 0:
        raise SystemExit(f"the merge ended with exit code {child.returncode}: {' '.join(arguments)}")
    if child.returncode < 0 and end == "done":
        end = f"killed by signal {-child.returncode} (9: most likely the kernel, out of memory)"
    return peaks, time.perf_counter() - start, end


def shown_command(arguments: Sequence[str], folder: Path) -> str:
    """The command without paths of this machine."""
    return " ".join(["fsmerge", *arguments[arguments.index("merge") :]]).replace(str(folder), "FOLDER")


def run(folder: Path, kind: dict[str, Any], stop_at: float) -> dict[str, Any]:
    """Write all inputs into `folder`, merge, and return the measurements."""
    for seed, task in enumerate(TASKS):
        parameters = write_source(folder / "checkpoints" / task, kind, seed)  # one at a time
    write_images(folder / "images", kind["size"])
    write_models(folder / "configs", folder / "checkpoints")
    arguments = command(folder)
    peaks, seconds, end = watched(arguments, folder / "cache", stop_at)
    written = folder / "merged/evaluation.json"
    cost = json.loads(written.read_text())["cost"] if end == "done" else {"seconds": {}, "steps": None}
    gb = {name: round(value / 1e9, 3) for name, value in peaks.items()}
    return {
        "what": f"peak resident memory of merging {len(TASKS)} sources",
        "architecture": kind["architecture"],
        "parameters_per_source": parameters,
        "k": len(TASKS),
        "command": shown_command(arguments, folder),
        "peak_gb": gb["VmHWM"],
        "at_peak_gb": {"anonymous": gb["AnonAtPeak"], "files": gb["FileAtPeak"]},
        "largest_gb": {"anonymous": gb["RssAnon"], "files": gb["RssFile"]},
        "bar_gb": BAR_GB,
        "met": met(gb["VmHWM"], BAR_GB) and end == "done",
        "end": end,
        "seconds": {**cost["seconds"], "whole process": round(seconds, 1)},
        "steps": cost["steps"],
        "device": device_name("cpu"),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "versions": versions(),
        "measured": today(),
    }


def table(found: dict[str, Any]) -> Table:
    """The measurements as a table for the terminal."""
    shown = Table("quantity", "value", title=f"{found['k']} x {found['architecture']} on {found['device']}")
    shown.add_row("peak resident memory", f"{found['peak_gb']:.2f} GB")
    for moment in ("at_peak_gb", "largest_gb"):
        parts = ", ".join(f"{name} {value:.2f} GB" for name, value in found[moment].items())
        shown.add_row(moment.replace("_gb", "").replace("_", " "), parts)
    shown.add_row("bar", f"<= {found['bar_gb']:g} GB: {'met' if found['met'] else 'MISSED'}")
    shown.add_row("end", found["end"])
    for phase, seconds in found["seconds"].items():
        shown.add_row(f"seconds, {phase}", f"{seconds:.1f}")
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file (default: docs/scale.json)")
    parser.add_argument("--small", action="store_true", help="tiny sources")
    parser.add_argument("--folder", type=Path, help="folder for temporary files (default: the system's)")
    parser.add_argument(
        "--stop-at", type=float, default=20.0, metavar="GB", help="stop the merge above this resident size"
    )
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="fsmerge-scale-", dir=options.folder))
    try:
        found = run(folder, SMALL if options.small else LARGE, options.stop_at)
    finally:
        shutil.rmtree(folder)
    write_json(options.output, found)
    Console().print(table(found))
    print(f"JSON: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
