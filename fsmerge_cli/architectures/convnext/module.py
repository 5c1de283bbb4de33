"""Inspection of ConvNeXt instances of timm and torchvision: properties, names, reasons against a merge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fsmerge_cli.architectures.convolutional.layers import ACTIVATIONS, POOLINGS

WB = r"(weight|bias)"
CLASSIFIERS = ("head.fc.", "classifier.2.")
"""Places of the classifier in timm's and torchvision's networks."""
TORCHVISION = {
    rf"features\.0\.([01])\.{WB}": r"stem.\1.\2",
    r"features\.([1357])\.(\d+)\.layer_scale": r"stages.\1.blocks.\2.gamma",
    rf"features\.([1357])\.(\d+)\.block\.0\.{WB}": r"stages.\1.blocks.\2.conv_dw.\3",
    rf"features\.([1357])\.(\d+)\.block\.2\.{WB}": r"stages.\1.blocks.\2.norm.\3",
    rf"features\.([1357])\.(\d+)\.block\.3\.{WB}": r"stages.\1.blocks.\2.mlp.fc1.\3",
    rf"features\.([1357])\.(\d+)\.block\.5\.{WB}": r"stages.\1.blocks.\2.mlp.fc2.\3",
    rf"features\.([246])\.([01])\.{WB}": r"stages.\1.downsample.\2.\3",
    rf"classifier\.0\.{WB}": r"head.norm.\1",
    r"classifier\.2\.(.*)": r"head.fc.\1",
}
"""Names of torchvision -> timm's, but for the number of a stage: module n belongs to stage n // 2 of timm."""


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of torchvision under timm's names; others unchanged. Its LayerScale is [C, 1, 1]."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, new in TORCHVISION.items():
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            name = match.expand(new)
            name = re.sub(r"^stages\.(\d)", lambda own: f"stages.{int(own[1]) // 2}", name)
            tensor = tensor.flatten() if name.endswith(".gamma") else tensor
            break
        found[name] = tensor
    return found


def blocks(model: Any) -> list[str]:
    """Names of the residual blocks, in order."""
    return [f"stages.{s}.blocks.{b}" for s, stage in enumerate(model.stages) for b in range(len(stage.blocks))]


def parts(model: Any) -> list[str]:
    """Names of the residual blocks and of the downsampling between them, in order."""
    found = []
    for number, stage in enumerate(model.stages):
        if not isinstance(stage.downsample, nn.Identity):
            found.append(f"stages.{number}.downsample")
        found += [f"stages.{number}.blocks.{place}" for place in range(len(stage.blocks))]
    return found


def sums(model: Any) -> dict[str, str]:
    """The last layer of every block, and the block, whose output is the sum."""
    return {f"{name}.mlp.fc2": name for name in blocks(model)}


def norms(model: nn.Module) -> Iterator[nn.Module]:
    """Its norms, without those of a user's classifier."""
    named = ((name, part) for name, part in model.named_modules() if hasattr(part, "eps"))
    return (part for name, part in named if not name.startswith(CLASSIFIERS))


def properties(model: Any) -> dict[str, Any]:
    """Properties that all sources have to share; widths may differ."""
    first = model.stages[0].blocks[0]
    stem = [part for part in model.stem if isinstance(part, nn.Conv2d)]
    kernels = [model.stages[s].blocks[0].conv_dw for s in range(len(model.stages))]
    strides = [1 if isinstance(s.downsample, nn.Identity) else s.downsample[1].stride[0] for s in model.stages]
    return {
        "blocks per stage": tuple(len(stage.blocks) for stage in model.stages),
        "stem": ", ".join(f"{part.kernel_size[0]}x{part.kernel_size[1]} stride {part.stride[0]}" for part in stem),
        "activation in the stem": any(isinstance(part, ACTIVATIONS) for part in model.stem),
        "depthwise kernels": tuple(f"{k.kernel_size[0]} dilation {k.dilation[0]}" for k in kernels),
        "strides": tuple(strides),
        "activation": type(first.mlp.act).__name__,
        "norm": type(first.norm).__name__,
        "eps": tuple(sorted({float(part.eps) for part in norms(model)})),  # type: ignore[arg-type]
        "LayerScale": first.gamma is not None,
        "global response normalisation": hasattr(first.mlp, "grn"),
        "biases": first.conv_dw.bias is not None,
        "1x1 convolutions": isinstance(first.mlp.fc1, nn.Conv2d),
        "norm before the pooling": not isinstance(model.norm_pre, nn.Identity),
        "hidden layer of the head": bool(getattr(model.head, "hidden_size", None)),
        "pooling": model.head.global_pool.pool_type,
    }


def arguments(model: Any) -> tuple[str, dict[str, Any]]:
    """A timm name, and keyword arguments for timm that give this model's sizes, of timm or of torchvision."""
    if not hasattr(model, "stages"):
        stages = [model.features[place] for place in (1, 3, 5, 7)]
        return "convnext_tiny", {
            "depths": [len(stage) for stage in stages],
            "dims": [stage[0].block[0].out_channels for stage in stages],
            "in_chans": model.features[0][0].in_channels,
        }
    first = model.stages[0].blocks[0]
    convolutions = [part for part in model.stem if isinstance(part, nn.Conv2d)]
    args: dict[str, Any] = {
        "depths": [len(stage.blocks) for stage in model.stages],
        "dims": [stage.blocks[0].conv_dw.out_channels for stage in model.stages],
        "kernel_sizes": [stage.blocks[0].conv_dw.kernel_size[0] for stage in model.stages],
        "in_chans": convolutions[0].in_channels,
        "conv_mlp": isinstance(first.mlp.fc1, nn.Conv2d),
        "conv_bias": first.conv_dw.bias is not None,
        "use_grn": hasattr(first.mlp, "grn"),
        "head_norm_first": not isinstance(model.norm_pre, nn.Identity),
        "head_hidden_size": getattr(model.head, "hidden_size", None),
        "global_pool": model.head.global_pool.pool_type,
    }
    if first.gamma is None:
        args["ls_init_value"] = None
    if len(convolutions) == 1:
        args["patch_size"] = convolutions[0].kernel_size[0]
    else:
        tiered = convolutions[0].out_channels != convolutions[1].out_channels
        active = any(isinstance(part, ACTIVATIONS) for part in model.stem)
        args["stem_type"] = "overlap_act" if active else "overlap_tiered" if tiered else "overlap"
    return "convnext_tiny", args


def differences(built: nn.Module, own: Any) -> list[str]:
    """Properties, or tensors without the classifier, in which a module differs from the one built for it."""
    if hasattr(own, "stages"):
        stated, found = properties(built), properties(own)
        if different := [key for key, value in found.items() if stated[key] != value]:
            return different
    elif {float(part.eps) for part in norms(own)} != {float(part.eps) for part in norms(built)}:  # type: ignore[arg-type]
        return ["eps"]
    shapes, expected = (
        {n: t.shape for n, t in timm_names(module.state_dict()).items() if not n.startswith("head.fc.")}
        for module in (own, built)
    )
    return sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))[:3]


UNKNOWN = ", which the specification of a ConvNeXt does not know"


def reasons(model: Any) -> list[str]:
    """Reasons why a variant cannot be merged, one of every kind."""
    found: dict[str, str] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d) and part.groups not in (1, part.out_channels):
            found.setdefault("groups", f"grouped convolutions ({name} has {part.groups} groups)")
        elif not _is_known(part):
            found.setdefault(type(part).__name__, f"{type(part).__name__} ({name}){UNKNOWN}")
    pooling = model.head.global_pool.pool_type
    if pooling not in POOLINGS:
        found["pooling"] = f"the pooling '{pooling}': its features are not one unit per channel"
    return list(found.values())


def _is_known(part: nn.Module) -> bool:
    from timm.layers import grn, mlp, norm
    from timm.models import convnext

    module = type(part).__module__
    if module.startswith("timm.layers.activations"):
        return not list(part.parameters())  # one that is trained may differ between the units
    plain = (nn.Conv2d, nn.Linear, nn.Sequential, nn.Identity, nn.Dropout, nn.Flatten, *ACTIVATIONS)
    pooled = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    inner = (norm.LayerNorm, norm.LayerNorm2d, norm.RmsNorm, norm.RmsNorm2d, norm.SimpleNorm, norm.SimpleNorm2d)
    own = (convnext.ConvNeXt, convnext.ConvNeXtStage, convnext.ConvNeXtBlock, mlp.Mlp, mlp.GlobalResponseNormMlp)
    known = (*plain, *pooled, *inner, *own, grn.GlobalResponseNorm)
    files = ("timm.layers.adaptive_avgmax_pool", "timm.layers.classifier", "timm.layers.drop")
    return module.startswith(files) or type(part) in known
