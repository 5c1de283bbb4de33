"""Why the tensors of a source do not fit its architecture, or its head its features and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fsmerge_cli.models.source import Source

MAX_LISTED = 3
"""How many differing tensors a message lists; the others are counted."""


def tensor_reasons(source: Source, expected: Mapping[str, tuple[int, ...]]) -> Iterable[str]:
    """Reasons why the tensors of a source are not those of its architecture, of the shapes `expected`."""
    found = {name: tuple(t.shape) for name, t in source.weights.items()}
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    other = [
        f"{name} is {list(found[name])}, should be {list(shape)}{_transposed(found[name], shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    for what, items in (
        ("lacks the tensors", missing),
        ("has unknown tensors", extra),
        ("has shapes that do not match its arch:", other),
    ):
        if items:
            more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
            yield f"'{source.name}' {what} {', '.join(items[:MAX_LISTED])}{more}"


def _transposed(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return " (it is transposed)" if len(found) == 2 and found == expected[::-1] else ""


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
