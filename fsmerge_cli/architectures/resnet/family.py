"""timm's ResNet: BasicBlock or Bottleneck, plain or deep stem, with or without squeeze-and-excitation.

In memory it has no BatchNorm: that of a source is folded into the convolution before it (`Folding`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from fsmerge_cli.architectures.convolutional.batchnorm import folded, pairs, with_norms, without_norms
from fsmerge_cli.architectures.convolutional.files import (
    classifier,
    config,
    per_channel,
    pixel_properties,
    pixels,
    resample,
    snippet,
)
from fsmerge_cli.architectures.convolutional.options import ConvArch, build, instance
from fsmerge_cli.architectures.family import Family, Folding
from fsmerge_cli.architectures.resnet.module import arguments, differences, properties, reasons, stages
from fsmerge_cli.architectures.resnet.options import TIMM, ResNetArch
from fsmerge_cli.architectures.resnet.table import table
from fsmerge_cli.common.errors import ConfigError, SourceError


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


def signature(arch: ResNetArch) -> dict[str, Any]:
    """Properties that all sources have to share; widths may differ."""
    return {"input_size": arch.input_size, **properties(instance(arch)), **pixel_properties(arch)}


CLASSES = ("timm.models.resnet.ResNet", "torchvision.models.resnet.ResNet")


def describe(module: nn.Module) -> ConvArch | None:
    """Options from which timm builds the same network; None if it is neither timm's ResNet nor torchvision's.

    Raises SourceError if it has parts that options do not describe.
    """
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" not in CLASSES:
        return None
    stated = getattr(module, "pretrained_cfg", None) or {}
    usual, args = arguments(module)
    name = str(stated.get("architecture") or usual)
    size = tuple((stated.get("input_size") or (3, 224, 224))[1:])
    options = {"name": name if TIMM.defines(name) else usual, "args": args, "size": size}
    arch = TIMM.parse("resnet", options, {}, name)
    if different := differences(instance(arch), module):
        raise SourceError(
            f"this module differs from timm's {name} in: {', '.join(different)}. "
            "Also pass its arch: {family: resnet, name: ..., args: {...}}."
        )
    return arch


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


RESNET = Family(
    name="resnet",
    arch=ResNetArch,
    build=build,
    resize=resize,
    table=table,
    entry="layer1.0.conv1",
    signature=signature,
    config=config,
    parse=TIMM.parse,
    snippet=snippet,
    head=lambda arch: "fc",
    refuse=lambda arch: reasons(instance(arch)),
    blocks=blocks,
    layers=blocks,
    adapt=lambda module, arch: folded(module, per_channel(arch, arch.mean), per_channel(arch, arch.std)),
    describe=describe,
    resample=resample,
    classifier=lambda arch, weights, weight, bias: classifier(arch, "fc", weights, weight, bias),
    folding=Folding(
        read=lambda arch, tensors: without_norms(instance(arch), tensors),
        write=lambda arch, weights, statistics: with_norms(instance(arch), weights, statistics),
        norms=lambda arch: [convolution for convolution, _ in pairs(instance(arch))],
    ),
    normalise=lambda arch, mean, std: replace(arch, mean=tuple(mean), std=tuple(std)),
    pixels=pixels,
    library="timm",
    unitwise_stream=True,
    sums=sums,
    widths=widths,
)
