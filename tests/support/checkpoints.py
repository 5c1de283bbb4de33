"""Writing sources as checkpoints, and the message with which a checkpoint is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec

MLP_ARCH: dict[str, Any] = {"family": "mlp", "input_size": (1, 4, 4), "widths": (6, 5)}
"""`arch` of the source of the fixture `source`."""


def save(folder: Path, source: Source, *heads: str) -> Path:
    """Write a source as a folder with one head per name."""
    assert source.head is not None
    stored = {
        name: Head(source.head.weight + n, source.head.bias, tuple(f"{name}-{x}" for x in source.head.labels))
        for n, name in enumerate(heads)
    }
    write_model(folder, model_config(source.family, source.arch), source.weights, *head_tensors(stored))
    return folder


def save_single(file: Path, source: Source, **extra: torch.Tensor) -> Path:
    """Write a source as one file, with its head under `head.` and extra tensors."""
    assert source.head is not None
    assert source.head.bias is not None
    head = {"head.weight": source.head.weight, "head.bias": source.head.bias}
    save_file({**source.weights, **head, **extra}, file)
    return file


def refused(spec: SourceSpec, kind: type[Exception] = SourceError) -> str:
    """The message of the error that is raised on loading `spec`."""
    with pytest.raises(kind) as error:
        load(spec)
    return str(error.value)
