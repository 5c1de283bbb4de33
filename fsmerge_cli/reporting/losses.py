"""The losses of a training as a table, from the content of evaluation.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fsmerge_cli.reporting.summary import Table, number

CURVE_ROWS = 20
"""Most rows of the table of losses."""


def losses(evaluation: Mapping[str, Any]) -> Table | None:
    """Losses at some of the steps; None without training."""
    training = evaluation["training"]
    curve, seen = training["curve"], {v["step"]: v["loss"] for v in training["validation"]}
    if not curve:
        return None
    steps = sorted(seen) or [point["step"] for point in thinned(curve)]
    cells = [
        [f"{step:,}", number(next((p["loss"] for p in curve if p["step"] >= step), None)), number(seen.get(step))]
        for step in steps
    ]
    parts = {own["step"]: own for own in training["validation_parts"]}
    if not parts:
        return Table(["step", "training loss", "validation loss"], cells)
    for step, row in zip(steps, cells):
        row += [number(parts.get(step, {}).get(name)) for name in ("features", "logits")]
    return Table(["step", "training loss", "validation loss", "of the features", "of the logits"], cells)


def thinned(points: Sequence[Any], count: int = CURVE_ROWS) -> list[Any]:
    """At most `count` points, evenly spaced, including the last one.

    >>> thinned(range(7), 3)
    [0, 3, 6]
    """
    size = math.ceil(len(points) / count)
    return list(points[::-1][::size][::-1]) if size else []
