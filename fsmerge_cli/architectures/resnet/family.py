"""timm's ResNet: BasicBlock or Bottleneck, plain or deep stem, with or without squeeze-and-excitation.

In memory it has no BatchNorm: that of a source is folded into the convolution before it (`Folding`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from fsmerge_cli.architectures.convolutional.family import BATCHNORM, Reading, convolutional
from fsmerge_cli.architectures.convolutional.options import instance
from fsmerge_cli.architectures.resnet.module import arguments, differences, properties, reasons, stages
from fsmerge_cli.architectures.resnet.options import TIMM, ResNetArch
from fsmerge_cli.architectures.resnet.table import table
from fsmerge_cli.common.errors import ConfigError


def resize(arch: ResNetArch, width: int | tuple[int, ...] | None, heads: int | None) -> ResNetArch:
    """Options of the merged model. width: of the features (all stages in proportion), or channels per stage."""
    if heads is not None:
        raise ConfigError("method.heads: a ResNet has no attention heads. Leave method.heads at null.")
    if width is None:
        return arch
    model = instance(arch)
    blocks = [stage[0] for _, stage in stages(model)]
    expansion = type(blocks[0]).expansion
    now = widths(arch)
    if isinstance(width, tuple) and len(width) != len(now):
        raise ConfigError(
            f"method.width: {list(width)} gives {len(width)} stages, but the sources have {len(now)}. Give one "
            f"width of the features, or a list of {len(now)} numbers of channels."
        )
    if isinstance(width, int):
        if width % expansion:
            raise ConfigError(f"method.width={width} is not a multiple of {expansion}, as {arch.name} needs.")
        first = 1 if blocks[0].downsample is None else 0  # the channels of the stem, which timm fixes
        scaled = [max(1, round(n * width / arch.features)) for n in now[:-1]]
        width = (*now[:first], *scaled[first:], width // expansion)
    return replace(arch, args={**arch.args, "channels": list(width)})


def widths(arch: ResNetArch) -> tuple[int, ...]:
    """The channels per stage that timm builds the same network from."""
    blocks = [stage[0] for _, stage in stages(instance(arch))]
    return tuple(b.conv2.out_channels if hasattr(b, "conv3") else b.conv1.out_channels for b in blocks)


def blocks(module: nn.Module) -> list[str]:
    """Names of the residual blocks of an instance."""
    return [f"{stage}.{place}" for stage, part in stages(module) for place in range(len(part))]


def sums(module: nn.Module) -> dict[str, str]:
    """The last convolution of every block without squeeze-and-excitation, and the activation behind its sum."""
    found = {}
    for name in blocks(module):
        block: Any = module.get_submodule(name)
        if getattr(block, "se", None) is None:
            last = 3 if hasattr(block, "conv3") else 2
            found[f"{name}.conv{last}"] = f"{name}.act{last}"
    return found


READING = Reading(TIMM, properties, arguments, differences, reasons)

RESNET = convolutional(
    READING,
    "fc",
    resize=resize,
    table=table,
    entry="layer1.0.conv1",
    blocks=blocks,
    layers=blocks,
    folding=BATCHNORM,
    sums=sums,
    widths=widths,
)
