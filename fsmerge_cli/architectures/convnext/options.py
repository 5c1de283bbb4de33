"""The options of a timm ConvNeXt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.dataclasses import dataclass

from fsmerge_cli.architectures.convnext.module import blocks
from fsmerge_cli.architectures.convolutional.options import ConvArch, TimmClass, instance
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.common.shown import brief

STAGES = 4
"""Number of stages that timm's ConvNeXt has."""

MAX_BLOCKS = 256
"""Most residual blocks: building a network takes seconds for every hundred, even without weights."""

MAX_CHANNELS = 2**16
"""Most channels of all stages together."""


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


def _require_blocks(args: Mapping[str, Any], where: str) -> None:
    """Raise SourceError for blocks and channels of which no network can be built in a few seconds."""
    for key, what, most in (("depths", "blocks", MAX_BLOCKS), ("dims", "channels", MAX_CHANNELS)):
        given = args.get(key, [1] * STAGES)
        whole = isinstance(given, list | tuple) and all(type(n) is int and n > 0 for n in given)
        if not whole or len(given) != STAGES or sum(given) > most:
            raise SourceError(
                f"{where}: {key} should be the numbers of {what} of the {STAGES} stages, at most {most} together, "
                f"it is {brief(given)}. Change arch.args, or model_args in config.json."
            )


TIMM = TimmClass("convnext", ConvNeXtArch, "ConvNeXt", "convnext", _require_blocks)
"""timm's class."""
