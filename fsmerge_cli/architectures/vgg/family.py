"""timm's VGG: 11 to 19 layers, with and without BatchNorm.

In memory it has no BatchNorm: that of a source is folded into the convolution before it (`Folding`). torchvision's
files are read under timm's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from fsmerge_cli.architectures.convolutional.batchnorm import without_norms
from fsmerge_cli.architectures.convolutional.family import BATCHNORM, Reading, convolutional
from fsmerge_cli.architectures.convolutional.options import instance
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
from fsmerge_cli.common.errors import ConfigError


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


def read(arch: VGGArch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in memory of a file of timm or torchvision. Raises SourceError where these two differ."""
    require_small(tensors, arch.input_size[1:])
    return without_norms(instance(arch), timm_names(tensors))


READING = Reading(
    TIMM,
    properties,
    arguments,
    differences,
    reasons,
    "timm has no such VGG, and what is merged has to load there.",
)

VGG = convolutional(
    READING,
    "head.fc",
    resize=resize,
    table=table,
    entry="features.0",
    layers=outputs,
    folding=replace(BATCHNORM, read=read),
)
