"""A torch module whose options differ from those that are built: the same function, or a refusal by name."""

from __future__ import annotations

import re
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


def test_the_eps_of_a_module_with_a_given_arch_is_its_own() -> None:
    module, pixels = vit(), torch.rand(2, 3, 8, 8)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 0.1
    arch = {"family": "vit", "name": "vit_tiny_patch16_224", "args": SIZES}
    found = load_source(module.eval(), arch=arch, mean=[0.0], std=[1.0])
    assert found.head is not None
    assert found.arch.eps == 0.1
    with torch.no_grad():
        torch.testing.assert_close(found.head(network(found)(pixels)), module(pixels))


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


def torchvision_resnet() -> Any:
    from torchvision.models import resnet

    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)


def replicating(module: Any) -> Any:
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.padding != (0, 0):
            part.padding_mode = "replicate"
            part._reversed_padding_repeated_twice = [side for side in part.padding[::-1] for _ in (0, 1)]  # type: ignore[misc]
    return module


def with_part(module: Any, place: str, part: nn.Module) -> Any:
    module.set_submodule(place, part)
    return module


def with_hook(module: Any) -> Any:
    module.register_forward_hook(lambda own, inputs, logits: 2 * logits)
    return module


def with_inputs_doubled(module: Any) -> Any:
    module.register_forward_pre_hook(lambda own, inputs: (2 * inputs[0],))
    return module


def strided(module: Any) -> Any:
    module.layer4[0].conv1.stride = module.layer4[0].downsample[0].stride = (1, 1)
    return module


OTHERWISE: dict[str, Any] = {
    "no pooling in the stem": lambda: with_part(torchvision_resnet(), "maxpool", nn.Identity()),
    "pooling without padding": lambda: with_part(
        timm.create_model("resnet18", **RESNET), "maxpool", nn.MaxPool2d(3, 2)
    ),
    "padding by the border": lambda: replicating(torchvision_resnet()),
    "another stride": lambda: strided(torchvision_resnet()),
    "one other activation": lambda: with_part(timm.create_model("resnet18", **RESNET), "layer3.0.act2", nn.GELU()),
    "a hook": lambda: with_hook(vit()),
    "softmax behind it": lambda: nn.Sequential(vit(), nn.Softmax(-1)),
    "doubled pixels": lambda: with_inputs_doubled(vit()),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_a_module_with_other_outputs_than_its_tensors_and_options_show_is_refused(case: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = OTHERWISE[case]()
    keys = {"mean": [0.0], "std": [1.0]} | (
        {} if any(hasattr(m, "blocks") for m in module.modules()) else {"input_size": 64}
    )
    with pytest.raises(SourceError) as error:
        load_source(module, **keys)
    assert re.fullmatch(
        rf"module {type(module).__name__} does not compute what its tensors and options show: on random inputs "
        "its "
        r"outputs differ by \d+\.\d% of the largest\. Its padding, strides, activations or hooks are not those of "
        r"the library's network, or layers before or after it change its inputs or outputs\. Pass the network "
        r"as the "
        r"library builds it, with mean=\[\.\.\.\] and std=\[\.\.\.\] of its inputs, or save its weights and pass "
        r"the file\.",
        str(error.value),
    )


def test_a_module_that_normalises_its_pixels_takes_its_mean_and_std() -> None:
    from torchvision.transforms import Normalize

    inner, pixels = vit(), torch.rand(2, 3, 8, 8)
    module = nn.Sequential(Normalize([0.4] * 3, [0.2] * 3), inner).train()
    found = load_source(module, mean=[0.4], std=[0.2])
    assert found.head is not None
    assert all(part.training for part in module.modules())
    with torch.no_grad():
        own, expected = found.head(network(found)(pixels)), module.eval()(pixels)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_module_that_cannot_be_compared_is_a_note() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = vit()

        def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = nn.functional.cross_entropy(self.net(pixels), labels)
            return found

    keys: dict[str, Any] = {"mean": [0.0], "std": [1.0]}
    assert load_source(Loss(), **keys).notes == ()  # its part has logits
    module = Loss()
    module.net.forward = None
    assert load_source(module, **keys).notes == (
        "'source': the module was not compared with what was read from it, since it cannot be run on images of "
        "3 x 8 x 8 or returns something else than logits or features",
    )


@pytest.mark.parametrize("place", ["layer4", "layer2.0.downsample"])
def test_other_parts_than_those_of_its_class_are_one_message(place: str) -> None:
    with pytest.raises(SourceError) as error:
        load_source(with_part(torchvision_resnet(), place, nn.Identity()))
    assert str(error.value) == (
        "source 'source': module ResNet: this ResNet has other parts than its class usually has (stem, norms, "
        "blocks, shortcuts), so its options cannot be read from it. Pass a network without such parts."
    )


def networks() -> list[tuple[Any, str, int]]:
    """Networks with a classifier, its place and the number of their features."""
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import BasicBlock, ResNet
    from torchvision.models import resnet, vision_transformer

    return [
        (ResNet(BasicBlock, **RESNET), "fc", 4),
        (ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 4, 8), num_classes=3), "head.fc", 8),
        (resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=3), "fc", 512),
        (vision_transformer.VisionTransformer(32, 16, 1, 3, 12, 20, num_classes=3), "heads.head", 12),
    ]


@pytest.mark.full
@pytest.mark.parametrize("number", range(4))
def test_the_classifier_of_a_module_is_known_wherever_it_lies(number: int) -> None:
    """Under any name its eps are known, and an activation without tensors is not taken for Dropout."""
    module, place, width = networks()[number]
    pixels = torch.rand(2, 3, 32, 32)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 3, "mlp_ratio": 20 / 12}
    torchvision = {"family": "vit", "name": "vit_base_patch16_224", "args": sizes}
    arch = torchvision if place == "heads.head" else None
    norm = nn.BatchNorm1d(width, eps=0.3)
    norm.running_mean = torch.rand(width)
    keys: dict[str, Any] = {"mean": [0.0], "std": [1.0], "arch": arch}
    keys |= {} if arch else {"input_size": 32}
    module.set_submodule(place, nn.Sequential(nn.Dropout(), norm, nn.Linear(width, 3)))
    found = load_source(module.eval(), **keys)
    assert found.head is not None
    assert not [note for note in found.notes if "Dropout" in note or "BatchNorm" in note]
    with torch.no_grad():
        own, expected = found.head(network(found)(pixels)), module(pixels)
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4)
    for wrong, index in ((nn.Tanh(), 0), (nn.Softmax(-1), 1)):
        layers = [nn.Linear(width, 3)]
        layers.insert(index, wrong)  # type: ignore[arg-type]
        module.set_submodule(place, nn.Sequential(*layers))
        with pytest.raises(SourceError, match=rf"it contains {type(wrong).__name__} \("):
            load_source(module, **keys)
