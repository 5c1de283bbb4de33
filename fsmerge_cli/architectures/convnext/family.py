"""timm's ConvNeXt, also with global response normalisation (V2). torchvision's files have timm's names here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from fsmerge_cli.architectures.convnext.module import (
    arguments,
    blocks,
    differences,
    parts,
    properties,
    reasons,
    sums,
    timm_names,
)
from fsmerge_cli.architectures.convnext.options import STAGES, TIMM, ConvNeXtArch
from fsmerge_cli.architectures.convnext.table import table
from fsmerge_cli.architectures.convolutional.batchnorm import folded
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
from fsmerge_cli.common.errors import ConfigError, SourceError


def resize(arch: ConvNeXtArch, width: int | tuple[int, ...] | None, heads: int | None) -> ConvNeXtArch:
    """Options of the merged model. width: of the last stage (all stages in proportion), or channels per stage."""
    if heads is not None:
        raise ConfigError("method.heads: a ConvNeXt has no attention heads. Leave method.heads at null.")
    now = widths(arch)
    if width is None:
        return arch
    if isinstance(width, tuple) and len(width) != STAGES:
        raise ConfigError(
            f"method.width: {list(width)} gives {len(width)} stages, but the sources have {STAGES}. Give one "
            f"width of the last stage, or a list of {STAGES} numbers of channels."
        )
    if isinstance(width, int):
        width = (*(max(1, round(n * width / now[-1])) for n in now[:-1]), width)
    return arch if width == now else replace(arch, args={**arch.args, "dims": list(width)})


def widths(arch: ConvNeXtArch) -> tuple[int, ...]:
    """The channels per stage."""
    return tuple(stage.blocks[0].conv_dw.out_channels for stage in instance(arch).stages)


def signature(arch: ConvNeXtArch) -> dict[str, Any]:
    """Properties that all sources have to share; widths may differ."""
    return {"input_size": arch.input_size, **properties(instance(arch)), **pixel_properties(arch)}


CLASSES = ("timm.models.convnext.ConvNeXt", "torchvision.models.convnext.ConvNeXt")


def describe(module: nn.Module) -> ConvArch | None:
    """Options from which timm builds the same network; None if it is neither timm's ConvNeXt nor torchvision's.

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
    arch = TIMM.parse("convnext", options, {}, name)
    if different := differences(instance(arch), module):
        raise SourceError(
            f"this module differs from timm's {name} in: {', '.join(different)}. "
            "Also pass its arch: {family: convnext, name: ..., args: {...}}."
        )
    return arch


CONVNEXT = Family(
    name="convnext",
    arch=ConvNeXtArch,
    build=build,
    resize=resize,
    table=table,
    entry="stem.0",
    signature=signature,
    config=config,
    parse=TIMM.parse,
    snippet=snippet,
    head=lambda arch: "head.fc",
    refuse=lambda arch: reasons(instance(arch)),
    blocks=parts,
    layers=blocks,
    adapt=lambda module, arch: folded(module, per_channel(arch, arch.mean), per_channel(arch, arch.std)),
    describe=describe,
    resample=resample,
    classifier=lambda arch, weights, weight, bias: classifier(arch, "head.fc", weights, weight, bias),
    folding=Folding(
        read=lambda arch, tensors: timm_names(tensors),
        write=lambda arch, weights, statistics: dict(weights),
    ),
    normalise=lambda arch, mean, std: replace(arch, mean=tuple(mean), std=tuple(std)),
    pixels=pixels,
    library="timm",
    unitwise_stream=True,
    sums=sums,
    widths=widths,
)
