"""`fsmerge merge`: sources -> plan -> images -> method -> heads -> scores -> MergeResult."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.checkpoints.base import Base
from fsmerge_cli.checkpoints.headers import SourceHeaders, read_headers
from fsmerge_cli.checkpoints.together import reading
from fsmerge_cli.common.atomic import claim, output_errors
from fsmerge_cli.common.distributed import World, join
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.separation import Input, expanded
from fsmerge_cli.common.timing import Clock
from fsmerge_cli.common.wording import worded_progress
from fsmerge_cli.data import Task
from fsmerge_cli.data.from_python import Data
from fsmerge_cli.data.readers import reader, require_same_kind
from fsmerge_cli.data.sampling import TestImages, prepare_images
from fsmerge_cli.methods import Method, Problem, Solution
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.kd import at_equal_budget
from fsmerge_cli.models.source import Source
from fsmerge_cli.reporting.terminal import reported
from fsmerge_cli.runs.base import base_notes, check_base, read_base
from fsmerge_cli.runs.merge_notes import distilled_notes
from fsmerge_cli.runs.merge_result import result_of
from fsmerge_cli.runs.provenance import images_sha256
from fsmerge_cli.runs.request import Models, Request, request
from fsmerge_cli.runs.result import MergeResult
from fsmerge_cli.training.snapshots import SaveInterval, Snapshots, check_state, state_folder


def merge(
    models: Models,
    *,
    base: Base | None = None,
    method: str | Mapping[str, Any] | Method = "fs_merge",
    data: Data | None = None,
    hardware: str | Mapping[str, Any] | Hardware = "auto",
    seed: int = 0,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int | str = "60s",
    kd: bool = False,
    dtype: str = "float32",
    license: str | None = None,
    progress: Progress | bool = False,
    command: str | None = None,
    more_inputs: Sequence[Input] = (),
    more_notes: Sequence[str] = (),
) -> MergeResult:
    """Merge trained networks into one network of the original size.

    models: name of a shipped set ("digits_mlp_pair"), or one entry per source: what `load_source` returned, or
    the keys of `models.sources`. base: the pretrained weights that all sources were fine-tuned from, which some
    methods need: a path, a module, what `load_source` returned, or keys as of a source. method, data, hardware:
    name of a shipped preset, a mapping with the keys of that group, or the dataclass itself. data: also a folder,
    or images or texts (a tensor, an array, a list, a torch Dataset; see `data.from_python`); None takes
    the default of the shipped set. seed: of all random numbers. output: folder to write (None: nothing is
    written, `MergeResult.save` does it later); a finished run in it is kept unless `overwrite`. resume: continue
    the interrupted run into that folder, if there is one. checkpoint_every: how often the state of the training
    is written (steps, or "60s", "5m"). kd: also evaluate distillation, trained with the method's images, steps,
    batches and losses at its own learning rate. dtype: of the written weights (float32, float16, bfloat16);
    everything is computed in fp32, and the rounded model is evaluated. license: for the model card. progress:
    called with every `Event`; True: shown on standard error. command: recorded as the run's origin. more_inputs:
    other paths that must not change. more_notes: for the report. With several processes (hardware.distributed)
    each returns the merged model, and only rank 0 evaluates, writes and reports progress.

    Raises UserError where the input is wrong, TrainingError where the run fails, CertificateError where the
    written model differs from the merged one, Interrupted where a signal stopped it and `resume` can continue it.
    """
    requested = request(
        models, method, data, hardware, seed, overwrite, resume, checkpoint_every, kd, dtype, license, base=base
    )
    requested = replace(requested, notes=(*requested.notes, *more_notes))
    inputs = (*requested.inputs(), *more_inputs)
    clock = Clock()
    snapshots = Snapshots()
    output = None if output is None else expanded(output)
    with ExitStack() as stack:
        report = stack.enter_context(reported(progress))
        with join(requested.hardware.distributed) as world:
            report = report if world.main else silent
            with world.synchronized():
                # Report every mismatch from the headers before anything is read or trained.
                opened = read_headers(requested.sources)
                requested = requested.settled([own.source for own in opened])
                plan = requested.method.plan([own.source for own in opened])
                check_base(requested, opened)
                report = worded_progress(report, plan.family.kind)
                device = stack.enter_context(requested.hardware.session())
                folder = None
                if output is not None and world.main:
                    folder = stack.enter_context(claim(output, requested.run.overwrite, inputs))
            problem, tests, notes = _problem(requested, opened, device, report, world, clock)
            notes += base_notes(requested, problem)
            for method in methods_of(requested):
                method.check(problem)
            if output is not None:
                snapshots = _snapshots(requested, problem, output)
                stack.enter_context(snapshots.report_progress_on_interrupt())
            with clock.phase("fit"):
                problem = replace(problem, snapshots=snapshots, plan=requested.method.refined(problem))
                own = problem.in_fp64() if requested.method.solves else problem
                solution = requested.method.fit(own).to(device)
            extra_rows = _extra_rows(requested, problem, solution, clock, notes)
        result = result_of(
            requested, problem, tests, solution, extra_rows, notes, clock, command or "fsmerge.merge(...)"
        )
        result = replace(result, inputs=inputs)
        if folder is not None:
            with output_errors(Path(output or folder)):
                result.write(folder, Path(output or folder))
    snapshots.discard()
    return result


def methods_of(requested: Request) -> list[Method]:
    """The methods that a run fits: the requested one, and distillation for a row of the evaluation."""
    more = [at_equal_budget(requested.method, len(requested.sources))] if requested.run.kd else []
    return [requested.method, *more]


def state_content(requested: Request, problem: Problem) -> dict[str, Any]:
    """What a saved state is valid for: these options, sources and images."""
    return {
        **requested.options(),
        "sha256": [source.sha256 for source in (*problem.sources, *([problem.base] if problem.base else []))],
        "images": images_sha256(problem.images),
    }


def _snapshots(requested: Request, problem: Problem, output: Path) -> Snapshots:
    """Where the state of this run is saved."""
    world, content = problem.world, state_content(requested, problem)
    with world.synchronized():  # rank 0 removes an old state, the others only read
        if world.main:
            check_state(output, content, requested.run.resume, requested.run.overwrite)
    every = SaveInterval.parse(requested.run.every)
    return Snapshots(state_folder(output), content, every, world.main, problem.progress)


def _problem(
    requested: Request,
    opened: Sequence[SourceHeaders],
    device: torch.device,
    progress: Progress,
    world: World,
    clock: Clock,
) -> tuple[Problem, TestImages, list[str]]:
    """The problem (the same on every process), the test images, and notes about the images."""
    sources: list[Source] = []
    base: Source | None = None
    with clock.phase("sources"):
        for turn in (world.main, not world.main):  # rank 0 trains the embedded sources, the others read the cache
            with world.synchronized():
                if turn:
                    sources = load_all(requested.sources, progress)
                    base = read_base(requested, opened, progress)
    with world.synchronized(), clock.phase("data"):
        problem, tests, notes = problem_of(requested, sources, device, progress)
    return replace(problem, world=world, base=base), tests, notes


def problem_of(
    requested: Request, sources: Sequence[Source], device: torch.device, progress: Progress
) -> tuple[Problem, TestImages, list[str]]:
    """The problem of loaded sources, with all images read; the test images; notes about the images."""
    plan = requested.method.plan(sources)
    tasks = [Task.of(source.name, source.head, source.classes) for source in sources]
    if requested.data is not None:
        require_same_kind(requested.data, [task.name for task in tasks], sources[0])
    transform = partial(reader, reading(sources))
    seed, workers = requested.run.seed, requested.hardware.workers
    method = requested.method
    needed = method.needs_images or requested.run.kd
    tests, images, notes = prepare_images(requested.data, tasks, transform, seed, workers, progress, needed)
    if method.mixed_images and requested.data and requested.data.is_mixed([task.name for task in tasks]):
        notes.append(f"method={method.name} {method.mixed_images}")
    notes += distilled_notes(plan, sources)
    return Problem(plan, sources, images, requested.hardware, device, seed, progress), tests, notes


def _extra_rows(
    requested: Request, problem: Problem, solution: Solution, clock: Clock, notes: list[str]
) -> dict[str, Solution]:
    """Models trained only for a row of the evaluation; their state is saved as that of a further training."""
    if not requested.run.kd:
        return {}
    student = at_equal_budget(requested.method, len(problem.sources))
    if student is requested.method:
        return {"kd": solution}

    def report(event: Event) -> None:
        problem.progress(replace(event, phase=f"kd: {event.phase}"))

    with clock.phase("kd"):
        found = student.fit(replace(problem, progress=report))
    kind = "the method's" if isinstance(requested.method, Trained) else "its default"
    notes.append(
        f"the row kd is distillation with {student.total_steps} steps ({kind} budget); its seconds are part of "
        "this run's, and the peak memory is that of both trainings"
    )
    return {"kd": found}
