"""timm's VGG: 11 to 19 layers, with and without BatchNorm.

In memory it has no BatchNorm: that of a source is folded into the convolution before it (`Folding`). torchvision's
files are read under timm's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

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
from fsmerge_cli.architectures.vgg.module import (
    arguments,
    differences,
    outputs,
    properties,
    reasons,
    require_small,
    timm_names,
)
from fsmerge_cli.architectures.vgg.options import TIMM, VGGArch
from fsmerge_cli.architectures.vgg.table import table
from fsmerge_cli.common.errors import ConfigError, SourceError


def resize(arch: VGGArch, width: int | tuple[int, ...] | None, heads: int | None) -> VGGArch:
    """Options of the merged model: those of the sources, since timm has a VGG in one width only."""
    if heads is not None:
        raise ConfigError("method.heads: a VGG has no attention heads. Leave method.heads at null.")
    if width not in (None, arch.features):
        raise ConfigError(
            f"method.width={width if isinstance(width, int) else list(width or ())}: timm builds {arch.name} with "
            f"{arch.features} features only. Leave method.width at null."
        )
    return arch


def signature(arch: VGGArch) -> dict[str, Any]:
    """Properties that all sources have to share; the width of the first fully connected layer may differ."""
    return {"input_size": arch.input_size, **properties(instance(arch)), **pixel_properties(arch)}


def read(arch: VGGArch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in memory of a file of timm or torchvision. Raises SourceError where these two differ."""
    require_small(tensors, arch.input_size[1:])
    return without_norms(instance(arch), timm_names(tensors))


CLASSES = ("timm.models.vgg.VGG", "torchvision.models.vgg.VGG")


def describe(module: nn.Module) -> ConvArch | None:
    """Options from which timm builds the same network; None if it is neither timm's VGG nor torchvision's.

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
    arch = TIMM.parse("vgg", options, {}, name)
    if different := differences(instance(arch), module):
        raise SourceError(
            f"this module differs from timm's {name} in: {', '.join(different)}. timm has no such VGG, and what "
            "is merged has to load there."
        )
    return arch


VGG = Family(
    name="vgg",
    arch=VGGArch,
    build=build,
    resize=resize,
    table=table,
    entry="features.0",
    signature=signature,
    config=config,
    parse=TIMM.parse,
    snippet=snippet,
    head=lambda arch: "head.fc",
    refuse=lambda arch: reasons(instance(arch)),
    layers=outputs,
    adapt=lambda module, arch: folded(module, per_channel(arch, arch.mean), per_channel(arch, arch.std)),
    describe=describe,
    resample=resample,
    classifier=lambda arch, weights, weight, bias: classifier(arch, "head.fc", weights, weight, bias),
    folding=Folding(
        read=read,
        write=lambda arch, weights, statistics: with_norms(instance(arch), weights, statistics),
        norms=lambda arch: [convolution for convolution, _ in pairs(instance(arch))],
    ),
    normalise=lambda arch, mean, std: replace(arch, mean=tuple(mean), std=tuple(std)),
    pixels=pixels,
    library="timm",
    unitwise_stream=True,
)
