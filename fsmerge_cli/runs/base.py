"""The pretrained weights of a run: read where the method uses them, and compared with the sources."""

from __future__ import annotations

from collections.abc import Sequence

from fsmerge_cli.checkpoints.base import BASE, base_headers, load_base
from fsmerge_cli.checkpoints.headers import SourceHeaders
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.progress import Progress
from fsmerge_cli.methods import Problem
from fsmerge_cli.models.parent import base_reasons, parent_notes
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.request import Request


def check_base(requested: Request, opened: Sequence[SourceHeaders], always: bool = False) -> SourceHeaders | None:
    """Raise SourceError where the headers show that models.base is not the sources' parent; its headers.

    None where there is none, or where the method does not use it (unless `always`).
    """
    if requested.base is None or not (always or requested.method.uses_base):
        return None
    return required_parent(requested.base, opened[0].source)


def required_parent(spec: SourceSpec, first: Source) -> SourceHeaders:
    """The headers of the pretrained weights. Raises SourceError where they cannot be those of source 1."""
    found = base_headers(spec, first)
    if reasons := base_reasons(first, found.source):
        lines = "".join(f"\n  - {reason}" for reason in reasons)
        raise SourceError(
            f"{BASE} ({found.source.origin}) cannot be what the sources were fine-tuned from:{lines}\n"
            "Pass the pretrained weights of the sources, or another method (method=average needs none)."
        )
    return found


def read_base(requested: Request, opened: Sequence[SourceHeaders], progress: Progress) -> Source | None:
    """The pretrained weights; None where the method does not use them."""
    if requested.base is None or not requested.method.uses_base:
        return None
    return load_base(requested.base, opened[0], progress)


def base_notes(requested: Request, problem: Problem) -> list[str]:
    """How the sources lie to models.base, or that it is not used."""
    notes = []
    if requested.base is not None and not requested.method.uses_base:
        notes.append(f"{BASE} is not used by method={requested.method.name}")
    if problem.base is not None:
        notes += [*parent_notes(problem.plan, problem.sources, problem.base), *problem.base.notes]
    return notes
