"""Tiny instances of every variant of timm's ResNet that can be merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.architectures.convolutional.options import ConvArch
from fsmerge_cli.architectures.resnet.options import TIMM
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source

TINY = {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 12], "in_chans": 2}
DEEP = {"stem_width": 4}  # a stem of 8 channels; the plain one always has 64

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deep stem, average pooling on the shortcut": ("resnet18d", DEEP),
    "basic block": ("resnet18", {}),
    "stage 1 in the stem's space": ("resnet18d", {**DEEP, "channels": [8, 8, 12, 8], "layers": [2, 1, 1, 1]}),
    "bottleneck": ("resnet50d", {**DEEP, "channels": [2, 2, 4, 2]}),
    "squeeze-and-excitation": ("seresnet50", {**DEEP, "stem_type": "deep", "channels": [4, 4, 4, 2]}),
    "squeeze-and-excitation, basic block": ("seresnet18", {**DEEP, "stem_type": "deep"}),
    "pooling by a convolution": ("resnet18d", {**DEEP, "replace_stem_pool": True, "stem_type": "deep_tiered"}),
    "dilation": ("resnet18d", {**DEEP, "output_stride": 8}),
    "maximum pooling, SiLU": ("resnet18d", {**DEEP, "global_pool": "max", "act_layer": "silu"}),
}

QUICK = {"deep stem, average pooling on the shortcut", "bottleneck"}
"""Variants in `make quick`."""


def resnet_arch(variant: str, size: int = 16, **options: Any) -> Any:
    """Options of a variant."""
    name, extra = VARIANTS[variant]
    return TIMM.parse("resnet", {"name": name, "args": {**TINY, **extra, **options}, "size": size}, {}, "test")


def random_tensors(arch: ConvArch, seed: int) -> dict[str, Tensor]:
    """The tensors of a file: random weights, and BatchNorms in which no value can be left out unnoticed."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in SPECS["resnet"].build(arch).state_dict().items():
        if not tensor.is_floating_point():
            found[name] = tensor.clone()
        elif tensor.ndim == 1:
            found[name] = torch.rand(tensor.shape, generator=random) + (
                0.5 if name[-4:] in ("ight", "_var") else -0.5
            )
        else:
            scale = (2 / tensor[0].numel()) ** 0.5
            found[name] = scale * torch.randn(tensor.shape, generator=random)
    return found


def resnet_source(variant: str, seed: int, classes: int = 3, **options: Any) -> Source:
    """A ResNet with random values in every tensor, including the statistics of its norms."""
    family, arch = SPECS["resnet"], resnet_arch(variant, **options)
    weights = family.from_file(arch, random_tensors(arch, seed))
    random = torch.Generator().manual_seed(seed + 1000)
    labels = tuple(f"{seed}-{c}" for c in range(classes))
    head = Head(
        torch.randn(classes, arch.features, generator=random), torch.randn(classes, generator=random), labels
    )
    return Source(f"s{seed}", family, arch, weights, head, origin="random", sha256=str(seed) * 64)


def write_resnet(
    folder: Path,
    variant: str,
    seed: int,
    pixels: Mapping[str, Any] | None = None,
    classes: int = 3,
    **options: Any,
) -> dict[str, Any]:
    """Write a random ResNet with a classifier as timm does; its entry. pixels: mean and std."""
    arch = resnet_arch(variant, **options)
    random = torch.Generator().manual_seed(seed + 1000)
    tensors = random_tensors(arch, seed)
    tensors |= {"fc.weight": torch.randn(classes, arch.features, generator=random), "fc.bias": torch.ones(classes)}
    folder.mkdir(parents=True)
    stated = {"input_size": list(arch.input_size), "crop_pct": 1.0, **(pixels or {})}
    config = {"architecture": arch.name, "model_args": arch.args, "num_classes": classes, "pretrained_cfg": stated}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return {"name": f"t{seed}", "checkpoint": str(folder), "labels": [f"{seed}-{c}" for c in range(classes)]}
