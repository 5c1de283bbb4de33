"""From the solution of a merge to its result: evaluation, heads, certificates, cost and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fsmerge_cli.alignment.channels import with_statistics
from fsmerge_cli.checkpoints.dtype import rounded, rounded_head
from fsmerge_cli.checkpoints.stated import stated_accuracies
from fsmerge_cli.checkpoints.tasks import notes_of_heads
from fsmerge_cli.checkpoints.together import reading, source_notes
from fsmerge_cli.common.hardware import peak_memory
from fsmerge_cli.common.timing import Clock
from fsmerge_cli.data.sampling import TestImages
from fsmerge_cli.evaluation.certificates import Certifier, probe
from fsmerge_cli.evaluation.joint import with_decision
from fsmerge_cli.evaluation.plausibility import worded_note
from fsmerge_cli.evaluation.score_table import evaluate
from fsmerge_cli.evaluation.serving import serving
from fsmerge_cli.methods import Method, Problem, Solution
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.models.duplicates import duplicate_notes
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.merge_notes import start_notes, training_notes
from fsmerge_cli.runs.provenance import images_sha256, versions
from fsmerge_cli.runs.request import Request
from fsmerge_cli.runs.result import MergeResult
from fsmerge_cli.supernet.fold import fold_head
from fsmerge_cli.training.state import Trace


def result_of(
    requested: Request,
    problem: Problem,
    tests: TestImages,
    solution: Solution,
    extra_rows: Mapping[str, Solution],
    notes: Sequence[str],
    clock: Clock,
    command: str,
) -> MergeResult:
    """The result of a run; only rank 0 evaluates the model that all processes hold."""
    sources, plan, dtype = problem.sources, problem.plan, requested.run.dtype
    exact = solution = with_statistics(problem, solution)
    if dtype != "float32":
        written = rounded(solution.tensors(plan), dtype)
        solution = replace(solution, weights=plan.family.from_file(plan.arch, written), dtype=dtype)
        extra_rows = {name: solution if other is exact else other for name, other in extra_rows.items()}
    with clock.phase("evaluate"):
        evaluation = evaluate(
            problem,
            solution,
            tests.measured if problem.world.main else [],
            requested.method,
            extra_rows,
            stated_accuracies(requested.sources),
        )
    merged = evaluation.rows.get("merged")
    heads = with_decision(_heads(sources, solution), merged.decision if merged else None)
    pixels = probe(problem.images, plan, problem.seed)
    certifier = Certifier(plan, sources, exact, heads, pixels, evaluation.evaluated, dtype, problem.progress)
    if requested.data is not None and not evaluation.rows:
        reason = "there are no images to measure with" if problem.world.main else "only process 0 evaluates"
        notes = [*notes, f"{reason}: nothing was evaluated"]
    notes = [
        *evaluation.warnings,
        *notes,
        *start_notes(plan, solution),
        *notes_of_heads(requested.notes, [source.name for source in sources if source.head is None]),
        *source_notes(sources),
        *duplicate_notes(sources),
    ]
    trace = solution.trace
    notes += training_notes(trace)
    notes = [worded_note(note, plan.family.kind) for note in notes]
    cost = {
        "seconds": clock.seconds,
        "steps": len(trace.loss),
        "trained_parameters": trace.trainable,
        "merged_parameters": sum(t.numel() for t in solution.weights.values()),
        "images": len(problem.images),
        "images_per_second": _rate(problem, trace, requested.method, clock),
        "peak_memory_bytes": peak_memory(problem.device),
        "serving": serving(problem, solution, pixels, dtype) if problem.world.main else None,
    }
    provenance = {
        "command": command,
        "seed": problem.seed,
        "device": str(problem.device),
        "processes": problem.world.size,
        "threads": problem.hardware.threads or torch.get_num_threads(),
        "versions": versions(),
        "sources": [_origin(source) for source in sources],
        **({} if problem.base is None else {"base": _origin(problem.base)}),
        "images_sha256": images_sha256(problem.images),
        "tests_sha256": tests.sha256,
    }
    return MergeResult(
        plan,
        reading(sources).preprocessing,
        solution,
        heads if dtype == "float32" else {name: rounded_head(head, dtype) for name, head in heads.items()},
        evaluation,
        cost,
        provenance,
        requested.options(),
        tuple(notes),
        certifier,
    )


def _origin(source: Source) -> dict[str, str]:
    return {"name": source.name, "origin": source.origin, "sha256": source.sha256}


def _rate(problem: Problem, trace: Trace, method: Method, clock: Clock) -> float | None:
    """Training images per second of the fit, capture of targets included; None for a resumed run."""
    seconds = clock.seconds["fit"]
    if not trace.loss or not isinstance(method, Trained) or not seconds or problem.snapshots.resumed:
        return None
    batch = method.images_per_step(len(problem.images.train))
    return round(len(trace.loss) * batch / seconds, 1)


def _heads(sources: Sequence[Source], solution: Solution) -> dict[str, Head]:
    pairs = zip(sources, solution.projectors)
    return {s.name: fold_head(s.head.to("cpu"), U.cpu()) for s, U in pairs if s.head is not None}
