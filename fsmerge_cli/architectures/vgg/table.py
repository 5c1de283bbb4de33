"""The specification of timm's VGG without BatchNorm: which space every axis of every tensor belongs to.

`c{i}` is the output of convolution i, `h` that of the first fully connected layer (a convolution that spans the
whole feature map), `out` that of the second, which are the features. Layers follow each other without a shortcut,
so that each has a space of its own.
"""

from __future__ import annotations

from torch import nn

from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import FIXED, Spec
from fsmerge_cli.architectures.vgg.module import convolutions


def table(module: nn.Module) -> Table:
    """The specification of one instance."""
    tensors: dict[str, Spec] = {}
    names = convolutions(module)
    layers = [
        *((name, f"c{i}") for i, name in enumerate(names)),
        ("pre_logits.fc1", "h"),
        ("pre_logits.fc2", "out"),
    ]
    read: str | None = None
    for name, written in layers:
        port = f"{written}@{name}"
        tensors[f"{name}.weight"] = (port, f"{read}@{name}" if read else FIXED, FIXED, FIXED)
        tensors[f"{name}.bias"] = (port,)
        read = written
    return Table(tensors=tensors, features="out@features")
