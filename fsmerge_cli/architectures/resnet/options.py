"""The options of a timm ResNet."""

from __future__ import annotations

from functools import partial

from pydantic.dataclasses import dataclass

from fsmerge_cli.architectures.convolutional.options import ConvArch, TimmClass, instance, require_stages
from fsmerge_cli.architectures.resnet.module import stages
from fsmerge_cli.common.options import FORBID


@dataclass(frozen=True, config=FORBID)
class ResNetArch(ConvArch):
    """Options of a timm ResNet."""

    @property
    def features(self) -> int:
        """Width of the features (units)."""
        return int(instance(self).num_features)

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return sum(len(stage) for _, stage in stages(instance(self)))


TIMM = TimmClass("resnet", ResNetArch, "ResNet", "resnet", partial(require_stages, "layers", "channels"))
"""timm's class, and torchvision's, whose names are the same."""
