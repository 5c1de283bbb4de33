"""Tiny VGGs, registered in timm beside its own, whose channels it fixes by their names."""

from __future__ import annotations

from typing import Any

from timm.layers.classifier import ClassifierHead
from timm.models import is_model, register_model
from timm.models._builder import build_model_with_cfg
from timm.models._registry import generate_default_cfgs
from timm.models.vgg import VGG, ConvMlp, _cfg, _filter_fn, default_cfgs
from torch import nn

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.architectures.convolutional.options import ConvArch
from fsmerge_cli.models.source import Source
from tests.support.convnets import conv_source

FAMILY = SPECS["vgg"]

CHANNELS = [4, "M", 5, "M", 6, 5, "M", 6, "M"]
FEATURES, HIDDEN = 6, 7

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vgg5_tiny", {}),
    "BatchNorm": ("vgg5_tiny_bn", {}),
    "maximum pooling": ("vgg5_tiny_bn", {"global_pool": "max"}),
}


def _tiny(cfg: list[Any], mlp_ratio: float = HIDDEN / FEATURES, **options: Any) -> nn.Module:
    model = VGG(cfg, mlp_ratio=1 / 4096, **options)
    width = model.num_features
    model.pre_logits = ConvMlp(width, FEATURES, 7, mlp_ratio=mlp_ratio, drop_rate=0.0)
    model.head_hidden_size = FEATURES
    model.head = ClassifierHead(FEATURES, options.get("num_classes", 0), options.get("global_pool", "avg"))
    return model


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    found: nn.Module = build_model_with_cfg(
        _tiny, name, pretrained, model_cfg=CHANNELS, pretrained_filter_fn=_filter_fn, **options
    )
    return found


def vgg5_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("vgg5_tiny", pretrained, **options)


def vgg5_tiny_bn(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("vgg5_tiny_bn", pretrained, norm_layer=nn.BatchNorm2d, **options)


for _entry in (vgg5_tiny, vgg5_tiny_bn):
    _entry.__module__ = "timm.models.vgg"  # where the family looks for its architectures
    if not is_model(_entry.__name__):
        default_cfgs.update(generate_default_cfgs({_entry.__name__: _cfg()}))
        register_model(_entry)


def vgg_arch(variant: str, size: int = 32, **options: Any) -> ConvArch:
    """Options of a variant."""
    name, args = VARIANTS[variant]
    found: ConvArch = FAMILY.parse(
        "vgg", {"name": name, "args": {"in_chans": 2, **args, **options}, "size": size}, {}, "test"
    )
    return found


def vgg_source(variant: str, seed: int, **options: Any) -> Source:
    """A VGG with random values in every tensor, including the statistics of its norms."""
    return conv_source(FAMILY, vgg_arch(variant, **options), seed)
