"""The straight line: sources -> plan -> queries -> method -> heads -> scores -> MergeResult."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass

from fsmerge_cli import presets
from fsmerge_cli.data import DATASETS, DataConfig, ImageSet, Task
from fsmerge_cli.data.base import Split, ToPixels
from fsmerge_cli.data.queries import Images, draw
from fsmerge_cli.errors import ConfigError, DataError
from fsmerge_cli.fold import fold_head
from fsmerge_cli.hardware import Hardware
from fsmerge_cli.methods import METHODS, Method, Problem, Solution
from fsmerge_cli.methods.average import Average
from fsmerge_cli.options import FORBID, Count, Flag, build, choose
from fsmerge_cli.output import claim
from fsmerge_cli.plan import Plan, compile_plan
from fsmerge_cli.progress import Progress, silent
from fsmerge_cli.result import MergeResult, versions
from fsmerge_cli.scoring import Score, TestSet, ensemble_forward, merged_forward, score
from fsmerge_cli.sources import Source, SourceSpec, load
from fsmerge_cli.zoo import materialise, named_labels


@dataclass(frozen=True, config=FORBID)
class Run:
    """Top-level settings: the seed of everything that is drawn, and whether a finished run is replaced."""

    seed: Count
    overwrite: Flag


Models = str | Sequence[SourceSpec | Mapping[str, Any]]


def merge(
    models: Models,
    *,
    method: str | Mapping[str, Any] | Method = "fs_merge",
    data: str | Mapping[str, Any] | DataConfig | None = None,
    hardware: str | Mapping[str, Any] | Hardware = "auto",
    seed: int = 0,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    command: str | None = None,
) -> MergeResult:
    """Merge trained networks into one network of the original size.

    models: name of a shipped set ("digits_mlp_pair"), or one entry per source with the keys of
    `models.sources`. method, data, hardware: name of a shipped preset, a mapping with the keys of that group,
    or the dataclass itself; data None takes the set's own. seed: of everything that is drawn. output: folder to
    write (None: nothing is written, `MergeResult.save` does it later); a finished run in it is kept unless
    `overwrite`. progress: called with every `Event`. command: what to record as the run's origin.

    Raises UserError (and its kinds in `errors`) where the input is wrong, TrainingError where the run fails.
    """
    specs, data = _sources(models), _data(models, data)
    chosen, machine = _method(method), _hardware(hardware)
    settings = build(Run, {"seed": seed, "overwrite": overwrite}, "")
    machine.resolve()
    options = {
        "models": {"sources": [asdict(spec) for spec in specs]},
        "data": asdict(data) if data else None,
        "method": asdict(chosen),
        "hardware": asdict(machine),
        "seed": settings.seed,
    }
    with claim(Path(output), settings.overwrite) if output is not None else nullcontext() as folder:
        result = _run(specs, data, chosen, machine, seed, progress, options, command or "fsmerge.merge(...)")
        if folder is not None:
            result.write(folder)
    return result


def check(models: Models, method: str | Mapping[str, Any] | Method = "average") -> Plan:
    """Load the sources and compile the plan; raises MismatchError with every reason why they cannot merge."""
    chosen = _method(method)
    sources = _load(_sources(models), silent)
    return compile_plan(sources, chosen.width, chosen.heads)


def _run(
    specs: Sequence[SourceSpec],
    data: DataConfig | None,
    method: Method,
    hardware: Hardware,
    seed: int,
    progress: Progress,
    options: Mapping[str, Any],
    command: str,
) -> MergeResult:
    clock = _Clock()
    if data is None and method.uses_images:
        raise DataError(
            f"method={options['method']['name']} needs unlabelled images and no data set is given. Pass "
            f"data=NAME ({', '.join(sorted(DATASETS))}; data.root=PATH for your own folder), or method=average."
        )
    with hardware.session() as device:
        with clock.phase("sources"):
            sources = _load(specs, progress)
        plan = compile_plan(sources, method.width, method.heads)
        with clock.phase("data"):
            images, notes = _draw(data, sources, seed, hardware.workers)
        problem = Problem(plan, sources, images, hardware, device, seed, progress)
        with clock.phase("fit"):
            solution = method.fit(problem)
        with clock.phase("evaluate"):
            scores = _score(problem, solution, _build(data, "test", sources), method)
    if data is not None and not scores:
        notes.append("the data set has no test images: nothing was evaluated")
    heads = _heads(sources, solution)
    notes += _start_notes(plan, solution) + _preprocessing_notes(sources)
    trace = solution.trace
    cost = {
        "seconds": clock.seconds,
        "steps": len(trace.loss),
        "trained_parameters": trace.trainable,
        "merged_parameters": sum(t.numel() for t in solution.weights.values()),
        "images": len(images),
    }
    provenance = {
        "command": command,
        "seed": seed,
        "device": str(device),
        "threads": hardware.threads or torch.get_num_threads(),
        "versions": versions(),
        "sources": [{"name": s.name, "origin": s.origin, "sha256": s.sha256} for s in sources],
    }
    return MergeResult(
        plan, sources[0].preprocessing, solution, heads, scores, cost, provenance, options, tuple(notes)
    )


def _load(specs: Sequence[SourceSpec], progress: Progress) -> list[Source]:
    """All sources in order; those with a checkpoint first, so that a wrong path is said before any training."""
    ready = {i: load(spec) for i, spec in enumerate(specs) if spec.checkpoint is not None}
    return [ready.get(i) or load(materialise(spec, progress)) for i, spec in enumerate(specs)]


def _heads(sources: Sequence[Source], solution: Solution) -> dict[str, Any]:
    return {
        s.name: fold_head(s.head.to("cpu"), U.cpu())
        for s, U in zip(sources, solution.readouts)
        if s.head is not None
    }


def _score(
    problem: Problem, solution: Solution, sets: Sequence[ImageSet | None], method: Method
) -> dict[str, Score]:
    """Rows: every source on its own task, the ensemble, the plain average and the merged model."""
    if not any(sets):
        return {}
    sources, tasks, device = problem.sources, problem.plan.tasks, problem.device
    tests = TestSet(tasks, tuple(sets), problem.hardware.workers, problem.hardware.eval_batch)
    truth = tests.truth()
    headed = [i for i, s in enumerate(sources) if s.head]
    # Rows of a head without label names are nobody else's classes, whatever their numbers.
    labels = [
        s.head.labels if s.head.named else tuple(f"{s.name} {label}" for label in s.head.labels)
        for s in sources
        if s.head
    ]
    reference = tests.predict(ensemble_forward(sources, device), device, problem.progress, "sources")
    ensemble = score(reference, reference, truth, tasks, headed, labels)
    rows = {
        name: Score({name: ensemble.tasks[name]} if name in ensemble.tasks else {}, {}, {name: 0.0})
        for name in tasks
    }
    rows["ensemble"] = ensemble
    average = Average()
    candidates = {"average": solution if isinstance(method, Average) else average.fit(problem)}
    if not isinstance(method, Average):
        candidates["merged"] = solution
    for name, candidate in candidates.items():
        backbone = problem.plan.skeleton()
        backbone.load_state_dict(dict(candidate.weights), assign=True)
        heads = [fold_head(s.head.to(device), U) if s.head else None for s, U in zip(sources, candidate.readouts)]
        forward = merged_forward(backbone.eval(), candidate.readouts, heads)
        outputs = tests.predict(forward, device, problem.progress, name)
        rows[name] = score(outputs, reference, truth, tasks, headed, labels)
    if isinstance(method, Average):
        rows["merged"] = rows["average"]
    return rows


def _build(data: DataConfig | None, split: Split, sources: Sequence[Source]) -> list[ImageSet | None]:
    if data is None:
        return [None] * len(sources)
    return [
        data.build(split, Task(s.name, s.labels), ToPixels(s.arch.input_size, sources[0].preprocessing))
        for s in sources
    ]


def _draw(data: DataConfig | None, sources: Sequence[Source], seed: int, workers: int) -> tuple[Images, list[str]]:
    sets = [s for s in _build(data, "train", sources) if s is not None]
    if data is None:
        empty = torch.empty(0, dtype=torch.long)
        return Images(torch.empty(0), empty, empty, empty), ["no data: nothing was evaluated"]
    notes = []
    for source, own in zip(sources, sets):
        if data.images_per_task != "all" and len(own) < data.images_per_task:
            notes.append(
                f"task '{source.name}' has {len(own)} images, fewer than images_per_task={data.images_per_task}; "
                "all of them are used"
            )
    return draw(data, sets, seed, workers), notes


def _start_notes(plan: Plan, solution: Solution) -> list[str]:
    """Where widths or heads differ, how far from the sources the nearest start was."""
    if plan.same_shape or not solution.trace.start_error:
        return []
    errors = ", ".join(f"{name} {e:.3f}" for name, e in zip(plan.tasks, solution.trace.start_error))
    return [
        f"widths or heads differ, so training began from the nearest start; relative feature error there: {errors}"
    ]


def _preprocessing_notes(sources: Sequence[Source]) -> list[str]:
    """What cannot be folded into weights is taken from source 1, and said where it differs."""
    first = sources[0]
    return [
        f"images are prepared as for '{first.name}'; '{other.name}' was trained with {', '.join(different)}"
        for other in sources[1:]
        if (different := first.preprocessing.differences(other.preprocessing))
    ]


def _sources(models: Models) -> list[SourceSpec]:
    entries: Any = presets.load("models", models)["sources"] if isinstance(models, str) else models
    if isinstance(entries, str | Mapping) or not isinstance(entries, Sequence):
        raise ConfigError(f"models.sources: should be a list of sources, got {entries!r}.")
    return [
        named_labels(entry if isinstance(entry, SourceSpec) else build(SourceSpec, entry, f"models.sources.{i}"))
        for i, entry in enumerate(entries)
    ]


def _data(models: Models, data: str | Mapping[str, Any] | DataConfig | None) -> DataConfig | None:
    if data is None and isinstance(models, str):
        data = presets.default_data(models)
    if data is None or isinstance(data, DataConfig):
        return data
    return choose(DATASETS, presets.load("data", data) if isinstance(data, str) else data, "data")


def _method(method: str | Mapping[str, Any] | Method) -> Method:
    if isinstance(method, Method):
        return method
    return choose(METHODS, presets.load("method", method) if isinstance(method, str) else method, "method")


def _hardware(hardware: str | Mapping[str, Any] | Hardware) -> Hardware:
    if isinstance(hardware, Hardware):
        return hardware
    values = presets.load("hardware", hardware) if isinstance(hardware, str) else hardware
    return build(Hardware, values, "hardware")


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
