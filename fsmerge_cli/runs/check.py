"""`fsmerge check`: an inspection of a merge before anything is trained or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.checkpoints.base import Base, base_entry, load_base
from fsmerge_cli.checkpoints.headers import SourceHeaders, read_headers
from fsmerge_cli.checkpoints.load import load, normalisation
from fsmerge_cli.checkpoints.open import interpret
from fsmerge_cli.checkpoints.stated import stated_accuracies
from fsmerge_cli.checkpoints.tasks import notes_of_heads
from fsmerge_cli.checkpoints.together import reading, source_notes
from fsmerge_cli.checkpoints.weight_cosine import weight_similarity
from fsmerge_cli.common.atomic import check_claim
from fsmerge_cli.common.distributed import checked_rank
from fsmerge_cli.common.errors import DataError, MismatchError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Progress, silent
from fsmerge_cli.common.wording import Word
from fsmerge_cli.data import Task
from fsmerge_cli.data.readers import reader, require_same_kind
from fsmerge_cli.data.sampling import TestImages, count_images
from fsmerge_cli.evaluation.plausibility import worded_note
from fsmerge_cli.evaluation.scorer import Scorer
from fsmerge_cli.methods import METHODS, Method, Problem
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.models.duplicates import duplicate_notes
from fsmerge_cli.models.parent import NO_PARENT
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs import closed_form_cost, estimate
from fsmerge_cli.runs.base import base_notes, check_base, required_parent
from fsmerge_cli.runs.merge import methods_of, problem_of, state_content
from fsmerge_cli.runs.recommendation import reason_against, recommend, verdict
from fsmerge_cli.runs.request import Models, Request, chosen_method, source_specs
from fsmerge_cli.training.snapshots import usable_state


@dataclass(frozen=True)
class SourceRow:
    """The table row of one source.

    width: of the features, in units. depth: in layers or blocks. heads, patch, classes: None where the source has
    none. parameters: of backbone and head together. dtype: as stored. bytes: on disk, None without a file. state:
    the file, `cached`, `trained on first use`, or the name on the hub.
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
    """A method, and the reason why it does not apply (None: it applies)."""

    name: str
    why_not: str | None


@dataclass(frozen=True)
class Inspection:
    """The result of `fsmerge check`.

    reasons: every mismatch (none: the sources can be merged). similarity: cosine of each further source's weights
    with source 1's (None: not computed); verdict: its interpretation. methods: all methods, with the reasons
    against them. recommended, why: the method to start with, as command-line arguments, and the reason. method:
    the requested one; memory: its peak on the CPU in bytes; seconds: estimated time of the run. notes: what could
    not be determined, and notes on the sources. top1: accuracy of every source on its labelled test images, a
    share, by task; empty where it was not asked for, or where there are none. numbers: the evaluated sources that
    predict a number, which has no accuracy. counted: what the test counts count.
    """

    rows: tuple[SourceRow, ...]
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
    top1: Mapping[str, float] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    counted: Word = "image"


def check(models: Models, method: str | Mapping[str, Any] | Method = "average", base: Base | None = None) -> Plan:
    """Load the sources and compile the plan. Raises MismatchError with every reason why they cannot be merged.

    base: the pretrained weights; SourceError where they cannot be those of the sources.
    """
    chosen = chosen_method(method)
    sources = load_all(source_specs(models), silent)
    plan = chosen.plan(sources)
    if base is not None:
        required_parent(base_entry(base), sources[0])
    return plan


def inspect(
    requested: Request,
    headers_only: bool = False,
    output: Path | None = None,
    measure: bool = False,
    progress: Progress = silent,
) -> Inspection:
    """Inspect the sources of a request, and estimate the cost of its method.

    Makes every refusal that `merge` makes before it trains, by the same functions in the same order: reads the
    weights and the images too, unless `headers_only`. Nothing is trained, downloaded or written: a source that is
    trained on first use is represented by its architecture. output: the folder of the merge, which is checked as
    well. measure: evaluate every source on its labelled test images. Raises UserError as `merge` does, except for
    mismatches of the headers, which are returned.
    """
    checked_rank(requested.hardware.distributed)
    opened = read_headers(requested.sources)
    sources = [own.source for own in opened]
    rows = tuple(_source_row(own) for own in opened)
    requested = requested.settled(sources)
    try:
        plan = requested.method.plan(sources)
    except MismatchError as error:
        return Inspection(rows, error.reasons, None, None, (), None, None, requested.method.name, None, None, ())
    parent = check_base(requested, opened, always=True)
    notes: list[str] = []
    top1: Mapping[str, float] = {}
    numbers: tuple[str, ...] = ()
    with requested.hardware.session() as device:
        if output is not None:
            check_claim(output, requested.run.overwrite, requested.inputs())
        if not headers_only:
            sources = [load(own.spec) if _has_weights(own) else own.source for own in opened]
            problem, tests, notes = problem_of(requested, sources, device, progress)
            notes = notes if requested.data else []  # without data: that nothing was evaluated
            if parent is not None and _has_weights(parent) and not any(map(_is_meta, sources)):
                problem = replace(problem, base=load_base(parent.spec, opened[0], progress))
            notes += base_notes(requested, problem)
            for method in methods_of(requested) if requested.data else ():  # else see `Request.require_images`
                method.check(problem)
            if output is not None:
                content = None if any(map(_is_meta, sources)) else state_content(requested, problem)
                usable_state(output, content, requested.run.resume, requested.run.overwrite)
            if measure:
                top1, numbers, found = _measured(requested, problem, tests)
                notes = [*found, *notes]
    cosines = None if headers_only or plan.distilled else weight_similarity(opened, plan)
    methods = tuple(Applicable(name, reason_against(name, plan, requested)) for name in sorted(METHODS))
    with_base = requested.base is not None and not any(note.startswith(NO_PARENT) for note in notes)
    recommended, why = recommend(plan, cosines, requested, with_base)
    memory, seconds, more = _estimated_cost(requested, plan, sources)
    ready = [source for source in sources if not _is_meta(source)]
    headless = [source.name for source in sources if source.head is None]
    notes += [*notes_of_heads(requested.notes, headless), *source_notes(sources), *duplicate_notes(ready), *more]
    return Inspection(
        rows=rows,
        reasons=(),
        similarity=cosines,
        verdict=verdict(cosines),
        methods=methods,
        recommended=recommended,
        why=why,
        method=requested.method.name,
        memory=memory,
        seconds=seconds,
        notes=tuple(worded_note(note, plan.family.kind) for note in dict.fromkeys(notes)),
        top1=top1,
        numbers=numbers,
        counted=plan.family.counted(plan.arch),
    )


def _has_weights(own: SourceHeaders) -> bool:
    """Whether the weights of a source are on disk or in memory; otherwise a merge trains or downloads them."""
    spec = own.spec
    return any(given is not None for given in (spec.checkpoint, spec.module, spec.loaded))


def _is_meta(source: Source) -> bool:
    """Whether only the shapes of a source's weights are known."""
    return any(tensor.is_meta for tensor in source.weights.values())


def _measured(
    requested: Request, problem: Problem, tests: TestImages
) -> tuple[dict[str, float], tuple[str, ...], list[str]]:
    """Top-1 accuracy, a share, of every source on its labelled test images; the sources of numbers; notes."""
    if missing := [source.name for source in problem.sources if _is_meta(source)]:
        why = f"the weights of {missing[0]} are not here yet"
        return {}, (), [f"the accuracy of the sources was not compared: {why}"]
    labelled = [own for own in tests.sets if own]
    if labelled:
        heads = {source.name: source.head for source in problem.sources}
        scorer = Scorer.of(heads, tests.sets, None, problem.hardware, problem.device, problem.progress)
        score, outputs = scorer.sources(problem.sources)
        if score.tasks or score.numbers:
            found = {name: own.top1 for name, own in score.tasks.items()}
            numbers = [
                f"'{name}' has a Pearson correlation of {own.pearson or 0:.3f} with the labels of {own.count} "
                "test images"
                for name, own in score.numbers.items()
            ]
            warnings = scorer.warnings(outputs, stated_accuracies(requested.sources))
            return found, (*score.numbers,), [*warnings, *numbers]
    return {}, (), ["the accuracy of the sources was not compared: there are no labelled test images"]


def _source_row(own: SourceHeaders) -> SourceRow:
    source, family, files = own.source, own.source.family, own.found.weights
    merges = not family.refuse(source.arch)
    facts = family.signature(source.arch) if merges else {}
    config = {} if own.spec.loaded else interpret(own.spec, own.found)[2]  # loaded: folded into the weights
    mean, std = normalisation(own.spec, config, own.found.where)
    types = {str(t.dtype).removeprefix("torch.") for t in own.found.tensors.values() if t.is_floating_point()}
    head = [] if source.head is None else [source.head.weight, source.head.bias, source.head.projector]
    dense = [tensor for layer in source.dense for tensor in layer.tensors]
    tensors = [*source.weights.values(), *(t for t in head if t is not None), *dense]
    return SourceRow(
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
        bytes=files.size if files else None,
        state="trained on first use" if own.found.origin == "recipe" else own.found.origin,
    )


def _estimated_cost(
    requested: Request, plan: Plan, sources: Sequence[Source]
) -> tuple[int | None, float | None, tuple[str, ...]]:
    """Estimated peak memory in bytes, estimated seconds, and notes on what could not be estimated."""
    device = requested.hardware.resolve()
    if requested.data is None and any(method.needs_images for method in methods_of(requested)):
        return None, None, ("no estimate without images (data=...)",)
    tasks = [Task.of(source.name, source.head, source.classes) for source in sources]
    if requested.data is not None:
        require_same_kind(requested.data, [task.name for task in tasks], sources[0])
    try:
        train, test, auxiliary, more = count_images(requested.data, tasks, partial(reader, reading(sources)))
    except DataError as error:  # only without reading images: a merge refuses it
        return None, None, (f"no estimate without the images: {error}",)
    work = estimate.Workload(tuple(train), tuple(test), auxiliary)
    network = estimate.measure(plan)
    sizes = [sum(4 * t.numel() for t in s.weights.values()) for s in sources]
    if solved := closed_form_cost.parts(requested.method)[0]:
        more = (*more, _views_note(solved, plan, work.images, solved is requested.method))
    rate = _rate(requested.hardware, device)
    methods = methods_of(requested)
    seconds = sum(estimate.operations(plan, method, work, network) for method in methods) / rate
    if device.type != "cpu":
        return None, seconds, (*more, "peak memory is estimated only for the CPU")
    peaks = [estimate.peak_memory(plan, sizes, method, requested.hardware, work, network) for method in methods]
    return max(peaks), seconds, more


def _views_note(method: FSClosedForm, plan: Plan, images: int, chosen: bool) -> str:
    """chosen: `method` is the method of the run, and not only the start of its training."""
    inputs = closed_form_cost.rows_of(method, plan, images)
    how = "; method.views changes that" if chosen else ""
    views = inputs // max(1, images)
    return f"the closed form runs all networks on {images} images x {views} views = {inputs} inputs{how}"


def _rate(hardware: Hardware, device: torch.device) -> float:
    with hardware.session():  # sets the number of threads
        return estimate.throughput(device)
