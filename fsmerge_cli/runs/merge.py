"""The straight line: sources -> plan -> queries -> method -> heads -> scores -> MergeResult."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.checkpoints.dtype import rounded, rounded_head
from fsmerge_cli.checkpoints.headers import headers
from fsmerge_cli.checkpoints.load import source_notes
from fsmerge_cli.common.atomic import claim, explained
from fsmerge_cli.common.distributed import World, join
from fsmerge_cli.common.hardware import Hardware, peak_memory
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.timing import Clock
from fsmerge_cli.data import DataConfig, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.sampling import Tests, prepared
from fsmerge_cli.evaluation.certificates import Proof, probe
from fsmerge_cli.evaluation.score_table import evaluate
from fsmerge_cli.methods import Method, Problem, Solution
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.kd import at_equal_budget
from fsmerge_cli.models.plan import Plan, compile_plan, repeated
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.request import Models, Request, check_apart, request
from fsmerge_cli.runs.result import MergeResult, images_sha256, versions
from fsmerge_cli.supernet.fold import fold_head
from fsmerge_cli.training.snapshots import Every, Keeper, check_state, state_folder
from fsmerge_cli.training.state import Trace


def merge(
    models: Models,
    *,
    method: str | Mapping[str, Any] | Method = "fs_merge",
    data: str | Mapping[str, Any] | DataConfig | None = None,
    hardware: str | Mapping[str, Any] | Hardware = "auto",
    seed: int = 0,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int | str = "60s",
    kd: bool = False,
    dtype: str = "float32",
    progress: Progress = silent,
    command: str | None = None,
) -> MergeResult:
    """Merge trained networks into one network of the original size.

    models: name of a shipped set ("digits_mlp_pair"), or one entry per source with the keys of
    `models.sources`. method, data, hardware: name of a shipped preset, a mapping with the keys of that group,
    or the dataclass itself; data None takes the set's own. seed: of everything that is drawn. output: folder to
    write (None: nothing is written, `MergeResult.save` does it later); a finished run in it is kept unless
    `overwrite`. resume: continue the interrupted run into that folder, if there is one. checkpoint_every: how
    often the state of a training is written (steps, or "60s", "5m"). kd: train a student as well, with the
    method's images, steps, batches and losses at a rate of its own, and give it a row. dtype: of the written
    numbers (float32, float16, bfloat16); everything is computed in fp32, and what is evaluated is the rounded
    model. progress: called with every `Event`. command: what to record as the run's origin.

    Of several processes (hardware.distributed) each returns the merged model, rank 0 alone evaluates, writes and
    reports.

    Raises UserError (and its kinds in `errors`) where the input is wrong, TrainingError where the run fails,
    CertificateError where the written model is not the one that was made, Interrupted where a signal stopped it
    and `resume` can continue it.
    """
    asked = request(models, method, data, hardware, seed, overwrite, resume, checkpoint_every, kd, dtype)
    if output is not None:
        check_apart(asked.inputs(), Path(output), asked.run.overwrite)
    clock = Clock()
    keeper = Keeper()
    with ExitStack() as stack:
        with join(asked.hardware.distributed) as world:
            progress = progress if world.main else silent
            with world.together():
                # Every mismatch, from the headers, before anything is read or trained.
                compile_plan(
                    [own.source for own in headers(asked.sources)], asked.method.width, asked.method.heads
                )
                device = stack.enter_context(asked.hardware.session())
                folder = None
                if output is not None and world.main:
                    folder = stack.enter_context(claim(Path(output), asked.run.overwrite))
            problem, tests, notes = _problem(asked, device, progress, world, clock)
            if output is not None:
                keeper = _keeper(asked, problem, Path(output))
                stack.enter_context(keeper.explained())
            with clock.phase("fit"):
                problem = replace(problem, keeper=keeper)
                solution = asked.method.fit(problem)
            rivals = _rivals(asked, problem, solution, clock, notes)
        result = _result(asked, problem, tests, solution, rivals, notes, clock, command or "fsmerge.merge(...)")
        if folder is not None:
            with explained(Path(output or folder)):
                result.write(folder)
    keeper.discard()
    return result


def _keeper(asked: Request, problem: Problem, output: Path) -> Keeper:
    """Where the state of this run is kept; it belongs to these options, sources and images alone."""
    world = problem.world
    content = {
        **asked.options(),
        "sha256": [source.sha256 for source in problem.sources],
        "images": images_sha256(problem.images),
    }
    with world.together():  # rank 0 clears the way, the others only read
        if world.main:
            check_state(output, content, asked.run.resume, asked.run.overwrite)
    every = Every.parse(asked.run.every)
    return Keeper(state_folder(output), content, every, world.main, problem.progress)


def _problem(
    asked: Request, device: torch.device, progress: Progress, world: World, clock: Clock
) -> tuple[Problem, Tests, list[str]]:
    """The same problem on every process, the test images, and what is to be noted about all images."""
    sources: list[Source] = []
    with clock.phase("sources"):
        for turn in (world.main, not world.main):  # rank 0 trains the embedded sources, the others find them
            with world.together():
                if turn:
                    sources = load_all(asked.sources, progress)
    with world.together():
        plan = compile_plan(sources, asked.method.width, asked.method.heads)
        with clock.phase("data"):
            tasks = [Task(source.name, source.labels) for source in sources]
            pixels = partial(ToPixels, sources[0].arch.input_size, sources[0].preprocessing)
            seed, workers = asked.run.seed, asked.hardware.workers
            tests, images, notes = prepared(asked.data, tasks, pixels, seed, workers, progress)
    return Problem(plan, sources, images, asked.hardware, device, seed, progress, world), tests, notes


def _rivals(
    asked: Request, problem: Problem, solution: Solution, clock: Clock, notes: list[str]
) -> dict[str, Solution]:
    """What is trained for a row of the evaluation alone; its state is kept as that of one more training."""
    if not asked.run.kd:
        return {}
    student = at_equal_budget(asked.method, len(problem.sources))
    if student is asked.method:
        return {"kd": solution}

    def told(event: Event) -> None:
        problem.progress(replace(event, phase=f"kd: {event.phase}"))

    with clock.phase("kd"):
        found = student.fit(replace(problem, progress=told))
    kind = "the method's" if isinstance(asked.method, Trained) else "its own default"
    notes.append(
        f"the row kd is {student.steps} steps of distillation with {kind} budget; their seconds are part of this "
        "run's, and the peak of memory is that of both trainings"
    )
    return {"kd": found}


def _result(
    asked: Request,
    problem: Problem,
    tests: Tests,
    solution: Solution,
    rivals: Mapping[str, Solution],
    notes: Sequence[str],
    clock: Clock,
    command: str,
) -> MergeResult:
    """The value of a run; rank 0 alone evaluates the model that all processes hold."""
    sources, plan, dtype = problem.sources, problem.plan, asked.run.dtype
    exact = solution
    if dtype != "float32":
        solution = replace(solution, weights=rounded(solution.weights, dtype), dtype=dtype)
        rivals = {name: solution if other is exact else other for name, other in rivals.items()}
    with clock.phase("evaluate"):
        evaluation = evaluate(problem, solution, tests.sets if problem.world.main else [], asked.method, rivals)
    heads = _heads(sources, solution)
    pixels = probe(problem.images, plan, problem.seed)
    proof = Proof(plan, sources, exact, heads, pixels, evaluation.seen, dtype, problem.progress)
    if asked.data is not None and not evaluation.rows:
        reason = "the data set has no test images" if problem.world.main else "process 0 evaluates for all"
        notes = [*notes, f"{reason}: nothing was evaluated"]
    notes = [*notes, *_start_notes(plan, solution), *source_notes(sources), *repeated(sources)]
    trace = solution.trace
    if trace.halved:
        notes.append(f"the loss was not finite at first; this training used lr={trace.lr:g}")
    if trace.part:
        notes.append(f"memory did not suffice for a whole batch: it was computed {trace.part} images at a time")
    cost = {
        "seconds": clock.seconds,
        "steps": len(trace.loss),
        "trained_parameters": trace.trainable,
        "merged_parameters": sum(t.numel() for t in solution.weights.values()),
        "images": len(problem.images),
        "images_per_second": _rate(problem, trace, asked.method, clock),
        "peak_memory_bytes": peak_memory(problem.device),
    }
    provenance = {
        "command": command,
        "seed": problem.seed,
        "device": str(problem.device),
        "processes": problem.world.size,
        "threads": problem.hardware.threads or torch.get_num_threads(),
        "versions": versions(),
        "sources": [{"name": s.name, "origin": s.origin, "sha256": s.sha256} for s in sources],
        "images_sha256": images_sha256(problem.images),
        "tests_sha256": tests.sha256,
    }
    return MergeResult(
        plan,
        sources[0].preprocessing,
        solution,
        heads if dtype == "float32" else {name: rounded_head(head, dtype) for name, head in heads.items()},
        evaluation,
        cost,
        provenance,
        asked.options(),
        tuple(notes),
        proof,
    )


def _rate(problem: Problem, trace: Trace, method: Method, clock: Clock) -> float | None:
    """Images trained on per second of the fit, capture included; None where an earlier process did some of it."""
    seconds = clock.seconds["fit"]
    if not trace.loss or not isinstance(method, Trained) or not seconds or problem.keeper.resumed:
        return None
    batch = method.images_per_step(len(problem.images.train))
    return round(len(trace.loss) * batch / seconds, 1)


def _heads(sources: Sequence[Source], solution: Solution) -> dict[str, Any]:
    return {
        s.name: fold_head(s.head.to("cpu"), U.cpu())
        for s, U in zip(sources, solution.projectors)
        if s.head is not None
    }


def _start_notes(plan: Plan, solution: Solution) -> list[str]:
    """Where widths or heads differ, how far from the sources the start was."""
    if plan.same_shape or not solution.trace.start_error:
        return []
    found = zip(plan.tasks, solution.trace.start_error)
    errors = ", ".join(f"{name} {error:.3f}" for name, error in found if math.isfinite(error))
    return [
        f"widths or heads differ, so no start is exact; relative feature error of the one that was taken: {errors}"
    ]
