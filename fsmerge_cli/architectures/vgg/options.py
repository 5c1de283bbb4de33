"""The options of a timm VGG."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fsmerge_cli.architectures.convolutional.options import ConvArch, TimmClass, instance
from fsmerge_cli.architectures.vgg.module import convolutions
from fsmerge_cli.common.options import FORBID


@dataclass(frozen=True, config=FORBID)
class VGGArch(ConvArch):
    """Options of a timm VGG; timm fixes its channels by its name."""

    @property
    def features(self) -> int:
        """Width of the features (units), those of the second fully connected layer."""
        return int(instance(self).pre_logits.fc2.out_channels)

    @property
    def depth(self) -> int:
        """Number of layers before the classifier."""
        return len(convolutions(instance(self))) + 2


TIMM = TimmClass("vgg", VGGArch, "VGG", "vgg")
"""timm's class."""
