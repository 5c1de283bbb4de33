"""The options of a vision transformer of timm, and the instance that they describe."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from fsmerge_cli.architectures.vit.distilled import has_two_tokens
from fsmerge_cli.architectures.vit.pooling import without_projection
from fsmerge_cli.common.options import FORBID, Flag, NonNegativeFloat, Text

BASE = "vit_base_patch16_224"
"""The timm name that describes instances without a timm name of their own."""

DISTILLED_BASE = "deit_base_distilled_patch16_224"
"""The same of those with a distillation token."""


@dataclass(frozen=True, config=FORBID)
class ViTArch:
    """Options of a timm vision transformer.

    name: timm's architecture name, without the tag of its weights. args: keyword arguments that override timm's
    defaults (img_size, embed_dim, depth, ...). projection: whether the model's `head` is a projection that belongs
    to the backbone (CLIP; `num_classes` in args is its width) instead of a task's classifier. eps: of all norms,
    if a source was trained with another value than timm's for this name; a merged model uses timm's.
    """

    name: Text
    args: dict[str, Any]
    projection: Flag = False
    eps: NonNegativeFloat | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width of the image (pixels)."""
        model = meta(self)
        height, width = model.patch_embed.img_size
        return model.patch_embed.proj.in_channels, height, width

    @property
    def features(self) -> int:
        """Width of the features (units): D, 2 D of two tokens, or the width of the projection."""
        model = meta(self)
        if has_two_tokens(model):
            return 2 * int(model.embed_dim)
        return int(model.head.out_features if self.projection else model.embed_dim)

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(meta(self).blocks)


def build(arch: ViTArch) -> nn.Module:
    """The timm model without a task head."""
    from timm.models import create_model  # timm takes seconds to import, and MLPs do without it

    args = dict(arch.args)
    classes = args.pop("num_classes", 0) if arch.projection else 0
    args.pop("num_classes", None)
    module: nn.Module = create_model(arch.name, pretrained=False, num_classes=classes, **args)
    return without_projection(module)


@lru_cache(maxsize=64)
def _instance(name: str, args: str, projection: bool) -> Any:
    with torch.device("meta"):
        return build(ViTArch(name, json.loads(args), projection)).eval()


def meta(arch: ViTArch) -> Any:
    """A cached instance on the meta device, only for reading properties; weights are never loaded into it."""
    return _instance(arch.name, json.dumps(arch.args, sort_keys=True), arch.projection)
