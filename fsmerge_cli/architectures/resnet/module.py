"""Inspection of timm ResNet instances: properties, reasons against a merge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from fsmerge_cli.architectures.convolutional.batchnorm import pairs
from fsmerge_cli.architectures.convolutional.layers import ACTIVATIONS, POOLINGS


def stages(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and modules of the stages of residual blocks, in order."""
    return ((name, part) for name, part in model.named_children() if name.startswith("layer"))


def properties(model: Any) -> dict[str, Any]:
    """Properties that all sources have to share; widths may differ."""
    blocks = [block for _, stage in stages(model) for block in stage]
    geometry = []
    for place, part in [("stem", model.conv1), ("stem pooling", model.maxpool), *stages(model)]:
        sizes = {_geometry(own): None for own in part.modules() if _geometry(own)}
        geometry.append(f"{place}: {', '.join(sorted(sizes))}")
    return {
        "block": type(blocks[0]).__name__,
        "blocks per stage": tuple(len(stage) for _, stage in stages(model)),
        "stem": "three convolutions" if isinstance(model.conv1, nn.Sequential) else "one convolution",
        "kernels and strides": "; ".join(geometry),
        "squeeze-and-excitation": getattr(blocks[0], "se", None) is not None,
        "activation": type(model.act1).__name__,
        "pooling": model.global_pool.pool_type,
    }


def _geometry(part: nn.Module) -> str:
    if isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride = (v[0] if isinstance(v, tuple) else v for v in (part.kernel_size, part.stride))
        dilation = part.dilation[0] if isinstance(part, nn.Conv2d) else 1
        kind = "" if isinstance(part, nn.Conv2d) else f"{type(part).__name__} "
        return f"{kind}{kernel}x{kernel} stride {stride}" + (f" dilation {dilation}" if dilation != 1 else "")
    return ""


def arguments(model: Any) -> tuple[str, dict[str, Any]]:
    """A timm name, and keyword arguments for timm that give this model's sizes, of timm or of torchvision."""
    parts = [part for _, part in stages(model)]
    block = parts[0][0]
    deep, bottleneck = isinstance(model.conv1, nn.Sequential), hasattr(block, "conv3")
    channels = [(b.conv3.out_channels // 4 if bottleneck else b.conv1.out_channels) for b in (p[0] for p in parts)]
    strides = [stage[0].conv2.stride[0] * stage[0].conv1.stride[0] for stage in parts]
    args: dict[str, Any] = {
        "layers": [len(stage) for stage in parts],
        "channels": channels,
        "in_chans": (model.conv1[0] if deep else model.conv1).in_channels,
        "output_stride": 4 * math.prod(strides),
    }
    if deep:
        first, second = model.conv1[0].out_channels, model.conv1[3].out_channels
        args |= {"stem_type": "deep" if first == second else "deep_tiered", "stem_width": second}
    if isinstance(model.maxpool, nn.Sequential) and isinstance(model.maxpool[0], nn.Conv2d):
        args["replace_stem_pool"] = True
    shortcuts = [stage[0].downsample for stage in parts if stage[0].downsample is not None]
    if any(not isinstance(shortcut[0], nn.Conv2d) for shortcut in shortcuts):
        args["avg_down"] = True
    if bottleneck and (block.conv2.groups != 1 or block.conv2.out_channels != channels[0]):
        groups = block.conv2.groups
        args |= {"cardinality": groups, "base_width": 64 * block.conv2.out_channels // (groups * channels[0])}
    if hasattr(model, "global_pool"):
        args["global_pool"] = model.global_pool.pool_type
    gate = "se" if getattr(block, "se", None) is not None else ""
    return f"{gate}resnet{50 if bottleneck else 18}", args


def differences(built: nn.Module, own: Any) -> list[str]:
    """Properties, or tensors without the classifier, in which a module differs from the one built for it."""
    if hasattr(own, "global_pool"):
        stated, found = properties(built), properties(own)
        if different := [key for key, value in found.items() if stated[key] != value]:
            return different
    shapes, expected = (
        {name: t.shape for name, t in module.state_dict().items() if not name.startswith("fc.")}
        for module in (own, built)
    )
    return sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))[:3]


def reasons(model: Any) -> list[str]:
    """Reasons why a variant cannot be merged, one of every kind."""
    found: dict[str, str] = {}
    with_norm = {convolution for convolution, _ in pairs(model)}
    unknown: list[str] = []
    for name, part in model.named_modules():
        if any(name.startswith(f"{owner}.") for owner in unknown):
            continue
        if isinstance(part, nn.Conv2d) and part.groups != 1:
            found.setdefault(
                "groups",
                f"grouped convolutions ({name} has {part.groups} groups): a unit of one group cannot take the "
                "place of a unit of another",
            )
        elif isinstance(part, nn.Conv2d) and name not in with_norm and ".se." not in name:
            found.setdefault("norm", f"a convolution without BatchNorm behind it ({name})")
        elif _is_anti_aliasing(name, part):
            unknown.append(name)
            found.setdefault("aa", f"anti-aliasing ({type(part).__name__} in {name}){UNKNOWN}")
        elif not _is_known(part):
            unknown.append(name)
            found.setdefault(type(part).__name__, f"{type(part).__name__} ({name}){UNKNOWN}")
    pooling = model.global_pool.pool_type
    if pooling not in POOLINGS:
        found["pooling"] = f"the pooling '{pooling}': its features are not one unit per channel"
    return list(found.values())


UNKNOWN = ", which the specification of a ResNet does not know"


def _is_anti_aliasing(name: str, part: nn.Module) -> bool:
    place = name.rpartition(".")[2] == "aa" or name.startswith("maxpool.")
    return place and not isinstance(part, (nn.Identity, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, *ACTIVATIONS))


def _is_known(part: nn.Module) -> bool:
    from timm.layers.pool2d_same import AvgPool2dSame
    from timm.layers.squeeze_excite import SEModule
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    if isinstance(part, nn.BatchNorm2d):
        return type(part) is nn.BatchNorm2d and part.affine and part.track_running_stats
    module = type(part).__module__
    if module.startswith("timm.layers.activations"):
        return not list(part.parameters())  # one that is trained may differ between the units
    plain = (nn.Conv2d, nn.Sequential, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, AvgPool2dSame, *ACTIVATIONS)
    own = (ResNet, BasicBlock, Bottleneck, SEModule, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)
    return module.startswith("timm.layers.adaptive_avgmax_pool") or type(part) in (*plain, *own)
