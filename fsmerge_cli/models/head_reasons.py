"""Why the head of a source does not fit its features or its labels."""

from __future__ import annotations

from collections.abc import Iterable

from fsmerge_cli.models.source import Source


def head_reasons(source: Source) -> Iterable[str]:
    """Reasons why the head of a source does not fit its features or its labels."""
    head = source.head
    if head is None:
        return
    reads = head.weight if head.projector is None else head.projector
    if head.weight.ndim != 2 or reads.ndim != 2 or reads.shape[1] != source.arch.features:
        yield (
            f"the head of '{source.name}' is {list(head.weight.shape)}, "
            f"should be [classes, {source.arch.features}]"
        )
    elif not len(head.weight):
        yield f"the head of '{source.name}' has no classes"
    elif head.bias is not None and head.bias.shape != head.weight.shape[:1]:
        yield f"the head of '{source.name}' has {len(head.weight)} classes and a bias {list(head.bias.shape)}"
    elif len(head.labels) != len(head.weight):
        yield (
            f"the head of '{source.name}' has {len(head.weight)} classes, but {len(head.labels)} labels are given"
        )
