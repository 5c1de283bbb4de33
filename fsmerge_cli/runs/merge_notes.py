"""Notes on the training of a merge."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fsmerge_cli.methods import Solution
from fsmerge_cli.models.distilled import differing
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.state import Trace


def training_notes(trace: Trace) -> list[str]:
    """What had to be changed during the training."""
    notes = []
    if trace.restarts:
        notes.append(f"the loss was not finite, and the training was restarted with lr={trace.lr:g}")
    if trace.images_at_once:
        notes.append(
            "memory did not suffice for a whole batch: each batch was computed in parts of "
            f"{trace.images_at_once} images"
        )
    return notes


def start_notes(plan: Plan, solution: Solution) -> list[str]:
    """Where widths, heads or architectures differ: the relative feature error of the initial merged model.

    The closed form (its solution has facts) has more heads than the sources have, and reproduces none anyway.
    """
    one_width = all(size == space.merged for space in plan.spaces.values() for size in space.sources)
    expected = plan.same_shape or (one_width and bool(solution.facts))
    if (expected and not plan.distilled) or not solution.trace.start_error:
        return []
    found = zip(plan.tasks, solution.trace.start_error)
    errors = ", ".join(f"{name} {error:.3f}" for name, error in found if math.isfinite(error))
    if plan.distilled:
        return [f"the relative feature error of the initial model, with fitted projectors: {errors}"]
    return [
        f"widths or heads differ, so the initial model reproduces no source; its relative feature error: {errors}"
    ]


def distilled_notes(plan: Plan, sources: Sequence[Source]) -> list[str]:
    """Where the architectures differ: in what, and on which grid tokens are compared."""
    if not plan.distilled:
        return []
    first, notes = sources[0], []
    for source in sources[1:]:
        if names := differing(first, source):
            notes.append(
                f"'{source.name}' and '{first.name}' differ ({', '.join(names)}): the merged model is a network "
                f"like '{first.name}', and of '{source.name}' only what it puts out is distilled"
            )
    grid = plan.family.grid(plan.skeleton())
    for source in sources:
        own = source.family.grid(source.family.skeleton(source.arch))
        if grid and own and own != grid and (source.head is None or source.reads != "pooled"):
            notes.append(
                f"tokens of '{source.name}': those of the merged model ({grid[0]} x {grid[1]} patches) are "
                f"brought to its places ({own[0]} x {own[1]}) by bilinear interpolation, which is not exact"
            )
    return notes
