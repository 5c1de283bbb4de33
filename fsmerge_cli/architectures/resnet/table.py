"""The specification of timm's ResNet without BatchNorm: which space every axis of every tensor belongs to.

`stem` is the output of the stem, `res{i}` the residual stream of stage i (that of the stem, as long as no block
has a convolution on its shortcut), `h{i}_{j}_{n}` the output of convolution n of a block, `se{i}_{j}` the hidden
layer of its squeeze-and-excitation, whose gate has the units of the stream.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import FIXED, Spec
from fsmerge_cli.architectures.resnet.module import stages


def table(module: nn.Module) -> Table:
    """The specification of one instance."""
    model: Any = module
    tensors: dict[str, Spec] = {}
    stream = _stem(model, tensors)
    for number, (stage, blocks) in enumerate(stages(model), 1):
        for place, block in enumerate(blocks):
            stream = _block(block, f"{stage}.{place}", f"{number}_{place}", stream, f"res{number}", tensors)
    return Table(tensors=tensors, features=f"{stream}@features")


def _stem(model: Any, tensors: dict[str, Spec]) -> str:
    """Adds the tensors of the stem; the space of its output."""
    space: str | None = None
    names = [n for n, part in model.named_modules() if isinstance(part, nn.Conv2d) and n.startswith("conv1")]
    names += [n for n, part in model.named_modules() if isinstance(part, nn.Conv2d) and n.startswith("maxpool")]
    for place, name in enumerate(names):
        written = "stem" if place == len(names) - 1 else f"stem{place}"
        _convolution(name, space, written, tensors)
        space = written
    return "stem"


def _block(block: Any, name: str, index: str, stream: str, new: str, tensors: dict[str, Spec]) -> str:
    """Adds the tensors of a residual block, which reads `stream`; the space of its output."""
    output = stream if block.downsample is None else new
    count = 3 if hasattr(block, "conv3") else 2
    space = stream
    for number in range(1, count + 1):
        written = output if number == count else f"h{index}_{number}"
        _convolution(f"{name}.conv{number}", space, written, tensors)
        space = written
    if block.downsample is not None:
        for place, part in block.downsample.named_children():
            if isinstance(part, nn.Conv2d):
                _convolution(f"{name}.downsample.{place}", stream, output, tensors)
    if getattr(block, "se", None) is not None:
        _convolution(f"{name}.se.fc1", output, f"se{index}", tensors)
        _convolution(f"{name}.se.fc2", f"se{index}", output, tensors)
    return output


def _convolution(name: str, read: str | None, written: str, tensors: dict[str, Spec]) -> None:
    port = f"{written}@{name}"
    tensors[f"{name}.weight"] = (port, f"{read}@{name}" if read else FIXED, FIXED, FIXED)
    tensors[f"{name}.bias"] = (port,)
