"""What `method.heads` stands for: a number of attention heads, `all` of the sources' heads, or `same`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import Positive
from fsmerge_cli.models.source import Source

HeadCount = Positive | Literal["all", "same"]


def merged_heads(
    sources: Sequence[Source], width: int | tuple[int, ...] | None, heads: int | Literal["all", "same"]
) -> int | None:
    """The number of attention heads that `heads` stands for; None: those of source 1, or none at all.

    `all` is the largest number that divides the merged width, up to the number of heads of all sources together.
    """
    if isinstance(heads, int):
        return heads
    counts = [source.family.heads(source.arch) for source in sources]
    if heads == "same" or not counts or None in counts:
        return None
    total = sum(count or 0 for count in counts)
    return next((n for n in range(total, 0, -1) if _fits(sources[0], width, n)), None)


def _fits(source: Source, width: int | tuple[int, ...] | None, heads: int) -> bool:
    try:
        source.family.resize(source.arch, width, heads)
    except ConfigError:
        return False
    return True
