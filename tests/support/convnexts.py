"""Tiny instances of the variants of timm's ConvNeXt that can be merged."""

from __future__ import annotations

from typing import Any

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.models.source import Source
from tests.support.convnets import conv_source

FAMILY = SPECS["convnext"]
TINY = {"depths": [1, 2, 1, 1], "dims": [4, 6, 6, 8], "in_chans": 2, "kernel_sizes": 3}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("convnext_tiny", {}),
    "norm before the pooling": ("convnext_tiny_hnf", {}),
    "overlapping stem": ("convnext_atto_ols", {}),
    "hidden layer in the head": ("convnext_large_mlp", {"head_hidden_size": 5}),
    "RMS norm": ("convnext_atto_rms", {}),
    "1x1 convolutions": ("convnext_tiny", {"conv_mlp": True}),
    "without LayerScale and biases": ("convnext_tiny", {"ls_init_value": None, "conv_bias": False}),
    "global response normalisation (V2)": ("convnextv2_tiny", {}),
}
QUICK = {"plain"}
"""Variants in `make quick`."""


def convnext_arch(variant: str, size: int = 32, **options: Any) -> Any:
    """Options of a variant."""
    name, args = VARIANTS[variant]
    return FAMILY.parse("convnext", {"name": name, "args": {**TINY, **args, **options}, "size": size}, {}, "test")


def convnext_source(variant: str, seed: int, **options: Any) -> Source:
    """A ConvNeXt with random values in every tensor."""
    return conv_source(FAMILY, convnext_arch(variant, **options), seed)
