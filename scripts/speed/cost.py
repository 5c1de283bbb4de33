"""Cost of a training step as a function of k, width, depth, rank and images, with measured slopes.

    python -m scripts.speed.cost             # updates docs/how-cost-grows.md and docs/cost.json (`make cost`)
    python -m scripts.speed.cost --quick     # tiny shapes, seconds: only tests the script

One quantity is varied at a time, the others stay at the base point. At every point the steps of distillation and
of FS-Merge with low-rank and with full maps, and the fold without the network (with its gradient), are timed in
turn; the tables show the median. They are written between the two markers of the page.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.speed.cases import Case, Shape, described, free_memory, timed
from scripts.speed.measure import device_name, fill, linear, read_json, threads, today, versions, write_json

OUTPUT, PAGE = Path("docs/cost.json"), Path("docs/how-cost-grows.md")
THREADS = 2
BASE = Shape(k=2, width=384, depth=2, batch=32, rank=12)
AXES: dict[str, tuple[int, ...]] = {
    "k": (2, 4, 8),
    "width": (192, 384, 768),
    "depth": (1, 2, 4),
    "rank": (4, 12, 48),
    "batch": (8, 32, 128),
}
QUICK_BASE = Shape(k=2, width=128, depth=2, batch=4, rank=4, size=32)
QUICK_AXES = {"k": (2, 3), "width": (64, 128), "depth": (1, 2), "rank": (2, 4), "batch": (2, 4)}
MEANING = {
    "k": "sources (k)",
    "width": "width (units)",
    "depth": "depth (blocks)",
    "rank": "rank of the maps",
    "batch": "images per step",
}
COLUMNS = {
    "kd": "KD step",
    "low_rank": "low-rank step",
    "full": "full-maps step",
    "fold low_rank": "low-rank fold only",
    "fold full": "full fold only",
}
PATCH = 16


def network_flops(shape: Shape) -> float:
    """Forward and backward of the network: 6 * tokens * images per weight (4 for patches), and attention."""
    tokens = (shape.size // PATCH) ** 2 + 1
    block = 6 * tokens * 12 * shape.width**2 + 12 * tokens**2 * shape.width
    return shape.batch * (shape.depth * block + 4 * tokens * 3 * PATCH**2 * shape.width)


def fold_flops(shape: Shape, structure: str) -> float:
    """Forward and backward of the fold; the page derives the factors."""
    d, entry = shape.width, (3 * PATCH**2 + (shape.size // PATCH) ** 2 + 2) * shape.width
    if structure == "low_rank":
        return shape.k * shape.rank * (shape.depth * 480 * d**2 + 10 * entry)
    return shape.k * (shape.depth * 240 * d**3 + 4 * d * entry)


def expected(shape: Shape) -> dict[str, float]:
    """Floating-point operations of every column."""
    low, full, network = fold_flops(shape, "low_rank"), fold_flops(shape, "full"), network_flops(shape)
    return {
        "kd": network,
        "low_rank": network + low,
        "full": network + full,
        "fold low_rank": low,
        "fold full": full,
    }


def measure(shape: Shape, repeats: int) -> dict[str, float]:
    """Median seconds of every column at one point, timed in turn, after one warm-up of each."""
    case = Case(shape)
    steps: dict[str, Callable[[], None]] = {m: case.step(m) for m in ("kd", "low_rank", "full")}
    steps |= {f"fold {structure}": case.fold_step(structure) for structure in ("low_rank", "full")}
    rounds = [{name: timed(step, shape.device) for name, step in steps.items()} for _ in range(1 + repeats)]
    return {name: statistics.median(one[name] for one in rounds[1:]) for name in steps}


def sweep(base: Shape, axes: dict[str, tuple[int, ...]], repeats: int) -> list[dict[str, Any]]:
    """Every axis with its points; a shape on several axes is measured once."""
    seen: dict[Shape, dict[str, float]] = {}
    found = []
    for axis, values in axes.items():
        points = []
        for value in values:
            shape = replace(base, **{axis: value})
            if shape not in seen:
                sys.stderr.write(f"{axis} = {value} ...\n")
                seen[shape] = measure(shape, repeats)
                free_memory()
            points.append({"value": value, "seconds": seen[shape], "flops": expected(shape)})
        slopes = {name: slope(points, name, getattr(base, axis)) for name in COLUMNS}
        found.append({"axis": axis, "base": getattr(base, axis), "points": points, "slopes": slopes})
    return found


def slope(points: Sequence[dict[str, Any]], name: str, base: int) -> dict[str, float]:
    """Growth of the seconds along an axis, and the exponent expected from the operations.

    exponent: p in seconds ~ value^p, the least-squares slope of the logarithms. marginal: seconds per additional
    unit, the least-squares slope, relative to the fitted value at the base point.
    """
    x = [float(point["value"]) for point in points]
    fitted = {}
    for what in ("seconds", "flops"):
        y = [float(point[what][name]) for point in points]
        fitted[what] = linear([math.log(v) for v in x], [math.log(v) for v in y])[0]
    per_unit, start = linear(x, [float(point["seconds"][name]) for point in points])
    return {
        "exponent": fitted["seconds"],
        "expected_exponent": fitted["flops"],
        "seconds_per_unit": per_unit,
        "marginal": per_unit / (start + per_unit * base),
    }


def tables(found: dict[str, Any]) -> str:
    """The measured part of the page in Markdown."""
    base = found["base"]
    head = (
        f"Base point: {base['text']}, k={base['k']}, rank {base['rank']}, {base['batch']} images per step, "
        f"{base['size']} px. {found['device']}, {found['threads']} threads, {base['precision']}, "
        f"torch {found['versions']['torch']}, timm {found['versions']['timm']}, "
        f"Python {found['versions']['python']}; median of {found['repeats']}; {found['measured']}."
    )
    return "\n\n".join([head, *(axis_table(axis) for axis in found["axes"])])


def axis_table(axis: dict[str, Any]) -> str:
    """Seconds at every value, ratios to distillation, and slopes."""
    lines = [
        f"| {MEANING[axis['axis']]} | " + " | ".join(COLUMNS.values()) + " | low-rank / KD | full / KD |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for point in axis["points"]:
        seconds = point["seconds"]
        each = [f"{seconds[name]:.3f} s" for name in COLUMNS]
        each += [f"{seconds[name] / seconds['kd']:.2f}" for name in ("low_rank", "full")]
        lines.append(f"| {point['value']} | " + " | ".join(each) + " |")
    slopes = [axis["slopes"][name] for name in COLUMNS]
    for label, text in (
        ("exponent", [f"{s['exponent']:.2f}" for s in slopes]),
        ("exponent of the operations", [f"{s['expected_exponent']:.2f}" for s in slopes]),
        (f"one more, at {axis['base']}", [f"{100 * s['marginal']:+.1f} %" for s in slopes]),
    ):
        lines.append(f"| {label} | " + " | ".join(text) + " | | |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file (default: docs/cost.json)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to update (default: docs/how-cost-grows.md)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=AXES, help="measure only these axes again")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one repeat")
    options = parser.parse_args(argv)
    page = options.page.read_text()
    fill(page, "cost.py", "")  # reports missing markers before the measurement
    base, axes = (QUICK_BASE, QUICK_AXES) if options.quick else (BASE, AXES)
    repeats, number = (1, 1) if options.quick else (options.repeats, THREADS)
    with threads(number):
        kept = {axis["axis"]: axis for axis in (read_json(options.output) or {"axes": []})["axes"]}
        selected = {axis: values for axis, values in axes.items() if axis in (options.only or axes)}
        fresh = {axis["axis"]: axis for axis in sweep(base, selected, repeats)}
        measured = [fresh.get(axis) or kept[axis] for axis in axes]
    found = {
        "quick": options.quick,
        "base": described(base),
        "axes": measured,
        "repeats": repeats,
        "threads": number,
        "device": device_name(base.device),
        "versions": versions(),
        "measured": today(),
    }
    write_json(options.output, found)
    options.page.write_text(fill(page, "cost.py", tables(found)))
    print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
