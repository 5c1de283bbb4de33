"""Writing files and folders as other programs save them; each function prepares one in an empty folder."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.sources import mlp_source

Weights = dict[str, Tensor]
Prepare = Callable[[Path, Weights], str]

SOURCE = mlp_source("a", [6, 5], 3)


def tensors() -> Weights:
    """A small MLP with its head, under fsmerge's names."""
    assert SOURCE.head is not None
    assert SOURCE.head.bias is not None
    return {**SOURCE.weights, "head.weight": SOURCE.head.weight, "head.bias": SOURCE.head.bias}


def put(name: str, content: bytes) -> Prepare:
    """A file of these bytes; the name may lie in a folder, which is then the checkpoint."""

    def prepare(folder: Path, weights: Weights) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return name

    return prepare


def torch_file(name: str, change: Callable[[Weights], Any] = lambda t: t, **options: Any) -> Prepare:
    def prepare(folder: Path, weights: Weights) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(change(weights), folder / name, **options)
        return name

    return prepare


def safe_file(name: str, change: Callable[[Weights], Weights] = lambda t: t) -> Prepare:
    def prepare(folder: Path, weights: Weights) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(change(weights), folder / name)
        return name

    return prepare


def within(path: str, *steps: Prepare) -> Prepare:
    """Several files; the checkpoint is `path`."""

    def prepare(folder: Path, weights: Weights) -> str:
        for step in steps:
            step(folder, weights)
        return path

    return prepare


def renamed(change: Callable[[str], str]) -> Callable[[Weights], Weights]:
    return lambda weights: {change(name): tensor for name, tensor in weights.items()}


def shards(path: str = "m", *, legacy: bool = False, **changes: Any) -> Prepare:
    """Two shards and their index; changes: drop a file, a tensor absent from all shards, an extra one, content."""

    def prepare(folder: Path, weights: Weights) -> str:
        (folder / "m").mkdir()
        names = sorted(weights)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        stem, suffix = ("pytorch_model", "bin") if legacy else ("model", "safetensors")
        index: dict[str, str] = {}
        for number, half in enumerate(halves, 1):
            file = f"{stem}-0000{number}-of-00002.{suffix}"
            own = {name: weights[name] for name in half}
            if number == 2 and "extra" in changes:
                own[changes["extra"]] = torch.ones(1)
            torch.save(own, folder / "m" / file) if legacy else save_file(own, folder / "m" / file)
            index |= dict.fromkeys(half, file)
        if "absent" in changes:
            index[changes["absent"]] = f"{stem}-00001-of-00002.{suffix}"
        content = changes.get("content", {"metadata": {}, "weight_map": index})
        (folder / f"m/{stem}.{suffix}.index.json").write_text(json.dumps(content))
        if "drop" in changes:
            (folder / "m" / changes["drop"]).unlink()
        return path

    return prepare


def zipped(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model/config.json"))
    return buffer.getvalue()


ARGS = argparse.Namespace(lr=1e-3)
