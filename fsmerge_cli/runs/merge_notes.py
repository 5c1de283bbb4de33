"""Notes on the training of a merge."""

from __future__ import annotations

import math

from fsmerge_cli.methods import Solution
from fsmerge_cli.models.plan import Plan
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
    """Where widths or heads differ: the relative feature error of the initial merged model."""
    if plan.same_shape or not solution.trace.start_error:
        return []
    found = zip(plan.tasks, solution.trace.start_error)
    errors = ", ".join(f"{name} {error:.3f}" for name, error in found if math.isfinite(error))
    return [
        f"widths or heads differ, so the initial model reproduces no source; its relative feature error: {errors}"
    ]
