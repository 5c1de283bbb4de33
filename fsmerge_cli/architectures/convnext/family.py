"""timm's ConvNeXt, also with global response normalisation (V2). torchvision's files have timm's names here."""

from __future__ import annotations

from dataclasses import replace

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
from fsmerge_cli.architectures.convnext.options import TIMM, ConvNeXtArch
from fsmerge_cli.architectures.convnext.table import table
from fsmerge_cli.architectures.convolutional.family import Reading, convolutional
from fsmerge_cli.architectures.convolutional.options import STAGES, instance
from fsmerge_cli.architectures.family import Folding
from fsmerge_cli.common.errors import ConfigError


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


READING = Reading(TIMM, properties, arguments, differences, reasons)

CONVNEXT = convolutional(
    READING,
    "head.fc",
    resize=resize,
    table=table,
    entry="stem.0",
    blocks=parts,
    layers=blocks,
    folding=Folding(
        read=lambda arch, tensors: timm_names(tensors),
        write=lambda arch, weights, statistics: dict(weights),
    ),
    sums=sums,
    widths=widths,
)
