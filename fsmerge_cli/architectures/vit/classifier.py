"""A merged vision transformer as others run it: with one classifier, or loaded by timm and safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.architectures.vit.distilled import TOKEN, two_heads

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, as in PIL's conversion (ITU-R 601-2)."""

ENTRY = "patch_embed.proj.weight"


def classifier(
    stated: Mapping[str, Any], projection: bool, weights: Mapping[str, Tensor], weight: Tensor, bias: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`architecture` and `model_args` of config.json, and the tensors of the whole model.

    stated: those of the backbone. projection: whether its `head` is a linear map behind the pooling, which is
    folded into the classifier. weight [classes, d], bias [classes]: of the classifier of the features. A model of
    grey images gets three channels, since others read images in colour: grey is a fixed sum of them.
    """
    tensors, args = dict(weights), dict(stated["model_args"])
    if projection:
        args.pop("num_classes", None)
        inner, constant = tensors.pop("head.weight"), tensors.pop("head.bias", None)
        bias = bias if constant is None else bias + weight @ constant
        weight = weight @ inner
    if args["in_chans"] == 1:
        args["in_chans"] = 3
        tensors[ENTRY] = in_colour(tensors[ENTRY])
    found = {"architecture": stated["architecture"], "model_args": args}
    if TOKEN in tensors:
        return found, {**tensors, **two_heads(weight, bias)}
    return found, {**tensors, "head.weight": weight.contiguous(), "head.bias": bias.contiguous()}


def in_colour(grey: Tensor) -> Tensor:
    """The weight [out, 3, h, w] for images in colour, of a convolution of grey images [out, 1, h, w]."""
    return grey * torch.tensor(LUMINANCE, dtype=grey.dtype, device=grey.device)[:, None, None]


SNIPPET = """import timm, torch
from safetensors.torch import load_file

backbone = timm.create_model("local-dir:.", pretrained=True).eval()  # the path of this folder
heads = load_file("heads.safetensors")

{head}
images = torch.rand(1, {shape})  # pixels in 0..1
logits = head(backbone(images))"""


def snippet(arch: Any, head: str) -> str:
    """Python that loads a merged vision transformer with only timm and safetensors."""
    return SNIPPET.format(shape=", ".join(str(size) for size in arch.input_size), head=head)
