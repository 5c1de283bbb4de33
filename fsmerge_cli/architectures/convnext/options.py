"""The options of a timm ConvNeXt."""

from __future__ import annotations

from functools import partial

from pydantic.dataclasses import dataclass

from fsmerge_cli.architectures.convnext.module import blocks
from fsmerge_cli.architectures.convolutional.options import ConvArch, TimmClass, instance, require_stages
from fsmerge_cli.common.options import FORBID


@dataclass(frozen=True, config=FORBID)
class ConvNeXtArch(ConvArch):
    """Options of a timm ConvNeXt."""

    @property
    def features(self) -> int:
        """Width of the features (units): of the last stage, or of the hidden layer of the head."""
        return int(instance(self).head.num_features)

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return len(blocks(instance(self)))


TIMM = TimmClass("convnext", ConvNeXtArch, "ConvNeXt", "convnext", partial(require_stages, "depths", "dims"))
"""timm's class."""
