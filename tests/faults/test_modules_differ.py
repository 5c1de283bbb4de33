"""A torch module whose options differ from those that are built: the same function, or a refusal by name."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from fsmerge_cli import load_source
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.training.teachers import network

SIZES: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 4,
}
RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4), "num_classes": 3}


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    return timm.create_model(name, **{**SIZES, **options})


@pytest.mark.parametrize("eps", [1e-2, 1e-7])
def test_the_eps_of_a_batchnorm_is_that_of_the_module(eps: float) -> None:
    from timm.models.resnet import BasicBlock, ResNet

    random, pixels = torch.Generator().manual_seed(0), torch.rand(2, 3, 32, 32)
    module = ResNet(BasicBlock, **RESNET, norm_layer=lambda units, **_: nn.BatchNorm2d(units, eps=eps)).eval()
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.01 + torch.rand(tensor.shape, generator=random))
    found = load_source(module, mean=[0.0], std=[1.0], input_size=32)
    assert found.head is not None
    with torch.no_grad():
        own, expected = found.head(network(found)(pixels)), module(pixels)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def one_eps() -> Any:
    module = vit()
    module.blocks[1].norm2.eps = 0.01
    return module


def parallel() -> Any:
    from timm.models.vision_transformer import ParallelScalingBlock

    return vit(block_fn=ParallelScalingBlock)


VIT = "Also pass its arch: {family: vit, name: ..., args: {...}}."
EVA = "Also pass its arch: {family: eva, name: ..., args: {...}}."
DIFFERENT = {
    "one eps": (
        one_eps,
        f"VisionTransformer: this module differs from timm's vit_tiny_patch16_224 in: eps. {VIT}",
    ),
    "parallel blocks": (
        parallel,
        "VisionTransformer: this module cannot be merged: ParallelScalingBlock: only blocks of attention, then "
        "MLP, each after its norm, can be merged.",
    ),
    "another temperature": (
        lambda: vit("vit_small_patch16_dinov3", rope_temperature=10.0),
        f"Eva: this Eva module differs from timm's vit_small_patch16_dinov3. {EVA}",
    ),
    "another reference grid": (
        lambda: vit("eva02_tiny_patch14_224", ref_feat_shape=(8, 8)),
        f"Eva: this Eva module differs from timm's eva02_tiny_patch14_224. {EVA}",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_module_that_computes_something_else_is_refused(case: str) -> None:
    build, message = DIFFERENT[case]
    with pytest.raises(SourceError) as error:
        load_source(build())
    assert str(error.value) == f"source 'source': module {message}"
