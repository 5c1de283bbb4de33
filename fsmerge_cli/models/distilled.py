"""The plan of a distillation from sources of unlike architectures into a network like that of source 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fsmerge_cli.common.errors import MismatchError
from fsmerge_cli.models.misfits import head_reasons
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source


def distilled_plan(sources: Sequence[Source], width: int | tuple[int, ...] | None, heads: int | None) -> Plan:
    """The plan of a network like source 1; of the others only the features and tokens matter.

    The spaces are those of source 1, as if every source were a copy of it; the features have the widths of the
    sources. Raises MismatchError where the sources read other inputs than source 1, or as `compile_plan` does for
    copies of a source.
    """
    first = sources[0]
    reasons = [reason for source in sources[1:] for reason in _reasons(first, source)]
    if reasons:
        raise MismatchError(reasons)
    for source in sources:  # its own tensors
        compile_plan([source, replace(source, name=f"{source.name} ")])
    plan = compile_plan([replace(first, name=source.name) for source in sources], width, heads)
    space = plan.spaces[plan.features.space]
    features = replace(space, sources=tuple(source.arch.features for source in sources))
    return replace(
        plan,
        source_archs=tuple(source.arch for source in sources),
        spaces={**plan.spaces, space.name: features},
        reads_tokens=any(source.reads != "pooled" for source in sources),
        distilled=True,
    )


def _reasons(first: Source, other: Source) -> Iterator[str]:
    if other.family is not first.family:
        yield f"'{first.name}' is a {first.family.name}, '{other.name}' a {other.family.name}"
        return
    yield from head_reasons(other)
    ours, theirs = (source.arch.input_size for source in (first, other))
    if first.family.kind == "image" and ours != theirs:
        yield (
            f"input_size: '{first.name}' has {list(ours)}, '{other.name}' has {list(theirs)}; "
            f"models.sources.N.input_size={list(ours[1:])} resamples the position embeddings of the other, which "
            "is not exact"
        )


def differing(first: Source, other: Source) -> list[str]:
    """The properties in which a source differs from source 1, by name."""
    ours, theirs = (source.family.signature(source.arch) for source in (first, other))
    return [name for name, value in ours.items() if theirs.get(name) != value]
