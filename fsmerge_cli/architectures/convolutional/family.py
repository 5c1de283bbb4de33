"""What the families of convolutional networks share: options, files and pixels of timm's classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from fsmerge_cli.architectures.convolutional.options import ConvArch, TimmClass, build, instance
from fsmerge_cli.architectures.family import Family, Folding
from fsmerge_cli.common.errors import SourceError


@dataclass(frozen=True)
class Reading:
    """How an instance of timm's class, or of torchvision's of the same name, is read.

    timm: the class. properties: those that all sources have to share, by the name used in messages; widths may
    differ. arguments: of an instance -> a usual name of timm and its arguments. differences: what distinguishes an
    instance from one that is built from its options. reasons: why an instance cannot be merged. remedy: the
    sentence that ends a message on differences (None: that options are passed).
    """

    timm: TimmClass
    properties: Callable[[Any], Mapping[str, Any]]
    arguments: Callable[[Any], tuple[str, dict[str, Any]]]
    differences: Callable[[Any, Any], Sequence[str]]
    reasons: Callable[[Any], Sequence[str]]
    remedy: str | None = None

    def signature(self, arch: ConvArch) -> dict[str, Any]:
        """Properties that all sources have to share."""
        return {"input_size": arch.input_size, **self.properties(instance(arch)), **pixel_properties(arch)}

    def describe(self, module: nn.Module) -> ConvArch | None:
        """Options from which timm builds the same network; None if it is of neither library's class.

        Raises SourceError if it has parts that options do not describe.
        """
        kind, own = type(module), self.timm
        known = [f"{library}.models.{own.module}.{own.name}" for library in ("timm", "torchvision")]
        if f"{kind.__module__}.{kind.__qualname__}" not in known:
            return None
        stated = getattr(module, "pretrained_cfg", None) or {}
        usual, args = self.arguments(module)
        name = str(stated.get("architecture") or usual)
        size = tuple((stated.get("input_size") or (3, 224, 224))[1:])
        options = {"name": name if own.defines(name) else usual, "args": args, "size": size}
        arch = own.parse(own.family, options, {}, name)
        if different := self.differences(instance(arch), module):
            remedy = self.remedy or f"Also pass its arch: {{family: {own.family}, name: ..., args: {{...}}}}."
            raise SourceError(f"this module differs from timm's {name} in: {', '.join(different)}. {remedy}")
        return arch


BATCHNORM = Folding(
    read=lambda arch, tensors: without_norms(instance(arch), tensors),
    write=lambda arch, weights, statistics: with_norms(instance(arch), weights, statistics),
    norms=lambda arch: [convolution for convolution, _ in pairs(instance(arch))],
)
"""BatchNorm is folded into the convolution before it, and written with the statistics of the merged network."""


def convolutional(reading: Reading, head: str, **own: Any) -> Family:
    """The family of timm's class. head: name of the task head's module. own: the other fields of `Family`."""
    return Family(
        name=reading.timm.family,
        arch=reading.timm.arch,
        build=build,
        signature=reading.signature,
        config=config,
        parse=reading.timm.parse,
        snippet=snippet,
        head=lambda arch: head,
        refuse=lambda arch: reading.reasons(instance(arch)),
        adapt=lambda module, arch: folded(module, per_channel(arch, arch.mean), per_channel(arch, arch.std)),
        describe=reading.describe,
        resample=resample,
        classifier=lambda arch, weights, weight, bias: classifier(arch, head, weights, weight, bias),
        normalise=lambda arch, mean, std: replace(arch, mean=tuple(mean), std=tuple(std)),
        pixels=pixels,
        library="timm",
        unitwise_stream=True,
        **own,
    )
