"""The specification of timm's ConvNeXt: which space every axis of every tensor belongs to.

`res{i}` is the residual stream of stage i, `h{i}_{j}` the hidden layer of block j in it, `stem` the first of two
convolutions of a stem, `out` the hidden layer of the head. A depthwise kernel [C, 1, h, w] is a per-unit tensor of
its stream, as the vectors of LayerNorm and LayerScale are: it has no mixing form, follows permutations and
selections, and is trained in the merged space. Global response normalisation is one of the hidden layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fsmerge_cli.architectures.family import Table
from fsmerge_cli.architectures.ports import FIXED, Spec, norm

Tensors = dict[str, Spec]


def table(module: nn.Module) -> Table:
    """The specification of one instance."""
    model: Any = module
    tensors: Tensors = {}
    read: str | None = None
    stem = [f"stem.{name}" for name, part in model.stem.named_children() if isinstance(part, nn.Conv2d)]
    for name in stem:
        written = "res0" if name == stem[-1] else "stem"
        _layer(model, name, read, written, tensors)
        read = written
    stream = "res0"
    _norm(f"stem.{len(model.stem) - 1}", stream, tensors)
    for number, stage in enumerate(model.stages):
        if not isinstance(stage.downsample, nn.Identity):
            place = f"stages.{number}.downsample"
            _norm(f"{place}.0", stream, tensors)
            _layer(model, f"{place}.1", stream, f"res{number}", tensors)
            stream = f"res{number}"
        for index in range(len(stage.blocks)):
            _block(model, f"stages.{number}.blocks.{index}", stream, f"h{number}_{index}", tensors)
    _norm("norm_pre", stream, tensors)
    _norm("head.norm", stream, tensors)
    if getattr(model.head, "hidden_size", None):
        _layer(model, "head.pre_logits.fc", stream, "out", tensors)
        stream = "out"
    return Table(tensors=tensors, features=f"{stream}@features")


def _block(model: nn.Module, name: str, stream: str, hidden: str, tensors: Tensors) -> None:
    tensors[f"{name}.gamma"] = norm(f"{stream}@{name}.gamma", fill=1.0)
    tensors[f"{name}.conv_dw.weight"] = norm(f"{stream}@{name}.conv_dw", fill=0.0)
    tensors[f"{name}.conv_dw.bias"] = norm(f"{stream}@{name}.conv_dw", fill=0.0)
    _norm(f"{name}.norm", stream, tensors)
    _layer(model, f"{name}.mlp.fc1", stream, hidden, tensors)
    tensors[f"{name}.mlp.grn.weight"] = norm(f"{hidden}@{name}.mlp.grn", fill=0.0)
    tensors[f"{name}.mlp.grn.bias"] = norm(f"{hidden}@{name}.mlp.grn", fill=0.0)
    _layer(model, f"{name}.mlp.fc2", hidden, stream, tensors)


def _norm(name: str, space: str, tensors: Tensors) -> None:
    tensors[f"{name}.weight"] = norm(f"{space}@{name}", fill=1.0)
    tensors[f"{name}.bias"] = norm(f"{space}@{name}", fill=0.0)


def _layer(model: nn.Module, name: str, read: str | None, written: str, tensors: Tensors) -> None:
    port, part = f"{written}@{name}", model.get_submodule(name)
    kernel = [FIXED, FIXED] if isinstance(part, nn.Conv2d) else []
    tensors[f"{name}.weight"] = (port, f"{read}@{name}" if read else FIXED, *kernel)
    tensors[f"{name}.bias"] = (port,)
