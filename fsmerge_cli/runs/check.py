"""What can be said of a merge before anything is read, trained or written: `fsmerge check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.checkpoints.headers import Opened, headers, weights_path
from fsmerge_cli.checkpoints.load import normalisation
from fsmerge_cli.checkpoints.open import translated
from fsmerge_cli.checkpoints.weight_cosine import similarity
from fsmerge_cli.common.errors import DataError, MismatchError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import silent
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.sampling import counted
from fsmerge_cli.methods import METHODS, Method
from fsmerge_cli.methods.kd import at_equal_budget
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs import estimate
from fsmerge_cli.runs.request import Models, Request, chosen_method, source_specs

SAME_PARENT, STRANGERS = 0.8, 0.2
"""Cosine to source 1 from which averaging will do, and up to which it will collapse."""

LARGE = 512
"""Width of the features from which full maps are too many numbers to begin with."""


@dataclass(frozen=True)
class Row:
    """One source: heads, patch, classes None where it has none; bytes: on disk, None where there is no file.

    width, depth: of the features (units) and in layers or blocks. parameters: numbers in backbone and head. dtype:
    as stored. state: its file, `cached`, `trained on first use`, or the hub's name.
    """

    name: str
    architecture: str
    width: int
    depth: int
    heads: int | None
    patch: tuple[int, ...] | None
    classes: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    parameters: int
    bytes: int | None
    state: str


@dataclass(frozen=True)
class Applicable:
    """A method, and why it does not apply here (None: it does)."""

    name: str
    why_not: str | None


@dataclass(frozen=True)
class Inspection:
    """Everything that `fsmerge check` says.

    reasons: every mismatch (none: the sources can be merged). similarity: cosine of each further source's weights
    to source 1's (None: not looked at, or nothing to compare); verdict: what follows. method: the one asked for;
    memory: bytes at its peak on the CPU; seconds: of the run, about. recommended, why: which method to start with,
    as it is put on the command line. notes: what could not be found out.
    """

    rows: tuple[Row, ...]
    reasons: tuple[str, ...]
    similarity: tuple[float, ...] | None
    verdict: str | None
    methods: tuple[Applicable, ...]
    recommended: str | None
    why: str | None
    method: str
    memory: int | None
    seconds: float | None
    notes: tuple[str, ...]


def check(models: Models, method: str | Mapping[str, Any] | Method = "average") -> Plan:
    """Load the sources and compile the plan; raises MismatchError with every reason why they cannot merge."""
    chosen = chosen_method(method)
    sources = load_all(source_specs(models), silent)
    return compile_plan(sources, chosen.width, chosen.heads)


def inspect(asked: Request, headers_only: bool = False) -> Inspection:
    """Inspect the sources of a request, and what its method would need.

    Reads headers, and at most 1 MB of weights per source unless `headers_only`; writes nothing. Raises SourceError
    where a header cannot be read, ConfigError where the method's options do not fit the sources.
    """
    opened = headers(asked.sources)
    sources = [own.source for own in opened]
    rows = tuple(_row(own) for own in opened)
    try:
        plan = compile_plan(sources, asked.method.width, asked.method.heads)
    except MismatchError as error:
        return Inspection(rows, error.reasons, None, None, (), None, None, asked.method.name, None, None, ())
    cosines = None if headers_only else similarity(opened, plan)
    methods = tuple(Applicable(name, _why_not(name, plan, asked)) for name in sorted(METHODS))
    recommended, why = _recommend(plan, cosines, asked)
    memory, seconds, notes = _needs(asked, plan, sources)
    notes = (*(note for source in sources for note in source.notes), *notes)
    return Inspection(
        rows, (), cosines, _verdict(cosines), methods, recommended, why, asked.method.name, memory, seconds, notes
    )


def _row(own: Opened) -> Row:
    source, family, file = own.source, own.source.family, weights_path(own.spec)
    merges = not family.refuse(source.arch)
    facts = family.signature(source.arch) if merges else {}
    mean, std = normalisation(own.spec, translated(own.spec, own.found)[2], own.found.where)
    types = {str(t.dtype).removeprefix("torch.") for t in own.found.tensors.values() if t.is_floating_point()}
    head = [] if source.head is None else [source.head.weight, source.head.bias, source.head.projector]
    tensors = [*source.weights.values(), *(t for t in head if t is not None)]
    return Row(
        name=source.name,
        architecture=str(family.config(source.arch)["architecture"]),
        width=source.arch.features,
        depth=source.arch.depth,
        heads=family.heads(source.arch) if merges else None,
        patch=facts.get("patch size"),
        classes=len(source.head.weight) if source.head else None,
        mean=mean,
        std=std,
        dtype=", ".join(sorted(types)),
        parameters=sum(t.numel() for t in tensors),
        bytes=file.stat().st_size if file else None,
        state="trained on first use" if own.found.origin == "recipe" else own.found.origin,
    )


def _why_not(name: str, plan: Plan, asked: Request) -> str | None:
    if METHODS[name].one_width and not plan.same_shape:
        return "widths or numbers of heads differ"
    if METHODS[name].uses_images and asked.data is None:
        return "needs unlabelled images (data=...)"
    return None


def _verdict(cosines: Sequence[float] | None) -> str | None:
    if cosines is None:
        return None
    if min(cosines) >= SAME_PARENT:
        return "the sources seem to share a parent: averaging will do"
    if min(cosines) <= STRANGERS:
        return "the sources seem to share no parent: averaging will collapse"
    return "the sources may share a parent: compare averaging with a method that trains"


def _recommend(plan: Plan, cosines: Sequence[float] | None, asked: Request) -> tuple[str, str]:
    if cosines is not None and min(cosines) >= SAME_PARENT:
        return "method=average", "the sources seem to share a parent"
    if asked.data is None:
        return "method=average", "without images nothing can be trained; with data=... take method=fs_merge"
    if plan.arch.features >= LARGE:
        return "method=fs_merge method.maps=low_rank", "full maps of this width are many numbers to train"
    return "method=fs_merge", "the sources are small enough for full maps"


def _needs(
    asked: Request, plan: Plan, sources: Sequence[Source]
) -> tuple[int | None, float | None, tuple[str, ...]]:
    """Predicted peak in bytes and seconds of the request, and what could not be found out."""
    device = asked.hardware.resolve()
    try:
        tasks = [Task(source.name, source.labels) for source in sources]
        train, test, others = counted(asked.data, tasks, partial(ToPixels, sources[0].arch.input_size))
    except DataError as error:
        return None, None, (f"no prediction without the images: {error}",)
    work = estimate.Workload(tuple(train), tuple(test), others)
    network = estimate.measure(plan)
    sizes = [sum(4 * t.numel() for t in s.weights.values()) for s in sources]
    rate = _rate(asked.hardware, device)
    methods = [asked.method, *([at_equal_budget(asked.method, len(sources))] if asked.run.kd else [])]
    seconds = sum(estimate.operations(plan, method, work, network) for method in methods) / rate
    if device.type != "cpu":
        return None, seconds, ("peak memory is predicted for the CPU alone",)
    peaks = [estimate.peak_memory(plan, sizes, method, asked.hardware, work, network) for method in methods]
    return max(peaks), seconds, ()


def _rate(hardware: Hardware, device: torch.device) -> float:
    with hardware.session():  # its number of threads
        return estimate.throughput(device)
