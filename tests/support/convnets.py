"""Sources of convolutional families with random values in every tensor, also the statistics of norms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fsmerge_cli.architectures import Family
from fsmerge_cli.architectures.convolutional.options import ConvArch
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source


def random_tensors(family: Family, arch: ConvArch, seed: int) -> dict[str, Tensor]:
    """The tensors of a file: random weights, and vectors in which no value can be left out unnoticed."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in family.build(arch).state_dict().items():
        if not tensor.is_floating_point():
            found[name] = tensor.clone()
        elif tensor.ndim == 1:
            low = 0.5 if name.endswith(("weight", "_var", "gamma")) else -0.5
            found[name] = torch.rand(tensor.shape, generator=random) + low
        else:
            found[name] = (2 / tensor[0].numel()) ** 0.5 * torch.randn(tensor.shape, generator=random)
    return found


def conv_source(family: Family, arch: Any, seed: int, classes: int = 3) -> Source:
    """A source with a classifier."""
    weights = family.from_file(arch, random_tensors(family, arch, seed))
    random = torch.Generator().manual_seed(seed + 1000)
    labels = tuple(f"{seed}-{c}" for c in range(classes))
    head = Head(
        torch.randn(classes, arch.features, generator=random), torch.randn(classes, generator=random), labels
    )
    return Source(f"s{seed}", family, arch, weights, head, origin="random", sha256=str(seed) * 64)


def write_conv(
    folder: Path, family: Family, arch: Any, seed: int, pixels: Mapping[str, Any] | None = None, classes: int = 3
) -> dict[str, Any]:
    """Write a random network with a classifier as timm does; its entry. pixels: mean and std."""
    random = torch.Generator().manual_seed(seed + 1000)
    tensors, head = random_tensors(family, arch, seed), family.head(arch)
    tensors |= {f"{head}.weight": torch.randn(classes, arch.features, generator=random)}
    tensors |= {f"{head}.bias": torch.ones(classes)}
    folder.mkdir(parents=True)
    stated = {"input_size": list(arch.input_size), "crop_pct": 1.0, **(pixels or {})}
    config = {"architecture": arch.name, "model_args": arch.args, "num_classes": classes, "pretrained_cfg": stated}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return {"name": f"t{seed}", "checkpoint": str(folder), "labels": [f"{seed}-{c}" for c in range(classes)]}
