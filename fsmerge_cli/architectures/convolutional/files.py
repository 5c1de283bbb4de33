"""What the files of a merged convolutional network state, and how others load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fsmerge_cli.architectures.convolutional.options import NORMALISATION, ConvArch, instance
from fsmerge_cli.architectures.vit.classifier import in_colour


def per_channel(arch: ConvArch, values: Sequence[float]) -> list[float]:
    """One value per channel of the image; one value stands for all."""
    return [*values] * arch.input_size[0] if len(values) == 1 else [*values]


def pixel_properties(arch: ConvArch) -> dict[str, Any]:
    """Mean and std of the pixels, which all sources have to share."""
    return {f"{name} of pixels": tuple(per_channel(arch, getattr(arch, name))) for name in NORMALISATION}


def config(arch: ConvArch) -> dict[str, Any]:
    """`architecture` and `model_args` for timm's local-dir."""
    return {"architecture": arch.name, "model_args": {**arch.args, "in_chans": arch.input_size[0]}}


def pixels(arch: ConvArch) -> dict[str, Any]:
    """Keys of pretrained_cfg: images of other sizes are possible, and mean and std are not folded."""
    values = {name: per_channel(arch, getattr(arch, name)) for name in NORMALISATION}
    return {"fixed_input_size": False, **values}


def classifier(
    arch: ConvArch, head: str, weights: Mapping[str, Tensor], weight: Tensor, bias: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`architecture` and `model_args` of config.json, and the tensors of the whole model, see `Family`.

    head: module of its classifier.
    """
    stated, tensors = config(arch), dict(weights)
    args = dict(stated["model_args"])
    first = next(name for name, part in instance(arch).named_modules() if isinstance(part, nn.Conv2d))
    if args["in_chans"] == 1:
        args["in_chans"] = 3
        tensors[f"{first}.weight"] = in_colour(tensors[f"{first}.weight"])
    found = {"architecture": stated["architecture"], "model_args": args}
    return found, {**tensors, f"{head}.weight": weight.contiguous(), f"{head}.bias": bias.contiguous()}


SNIPPET = """import timm, torch
from safetensors.torch import load_file

backbone = timm.create_model("local-dir:.", pretrained=True).eval()  # the path of this folder
heads = load_file("heads.safetensors")

{head}
images = torch.rand(1, {shape})  # pixels in 0..1
mean, std = (torch.tensor(backbone.pretrained_cfg[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
logits = head(backbone((images - mean) / std))"""


def snippet(arch: ConvArch, head: str) -> str:
    """Python that loads a merged network with only timm and safetensors."""
    return SNIPPET.format(shape=", ".join(str(size) for size in arch.input_size), head=head)


def resample(
    arch: ConvArch, weights: Mapping[str, Tensor], size: tuple[int, int], where: str
) -> tuple[ConvArch, dict[str, Tensor]]:
    """The same weights for images of another size (height, width) in pixels; its scores differ there."""
    return replace(arch, size=size[0] if size[0] == size[1] else size), dict(weights)
