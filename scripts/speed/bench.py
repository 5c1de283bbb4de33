"""Speed and memory of FS-Merge compared with distillation: ratios measured in one run, each with its bar.

    python -m scripts.speed.bench          # every row that this machine can measure (`make bench`)
    python -m scripts.speed.bench --gpu    # only the GPU rows, into the same file; Hydra is not needed
    python -m scripts.speed.bench --quick  # tiny shapes, seconds: only tests the script

Both sides are measured in turn, A B A B ...; the ratio is the median of A / B over the pairs after the warm-up. A
step is forward, loss, backward, gradient clipping and AdamW, on the same images and targets for both. Rows that
this machine cannot measure keep their values from the file. A missed bar is reported; the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from scripts.speed.cases import Shape, described
from scripts.speed.measure import (
    device_name,
    fill,
    met,
    read_json,
    today,
    versions,
    write_json,
)
from scripts.speed.rows import Row, rows, shrunk
from scripts.speed.sides import cpu_peak, measure

OUTPUT = Path("docs/bench.json")
NO_GPU, NOT_SELECTED = "unmeasured: no CUDA device", "unmeasured: not selected"


def entry(row: Row, found: dict[str, Any] | None) -> dict[str, Any]:
    """A row as JSON; found is None if the row was not measured."""
    method, shape = row.first
    trains = row.kind != "help"
    value = found["ratio"]["median"] if found else None
    empty = {"repeats": 0, "ratio": None, "medians": None, "unit": None}
    return {
        "name": row.name,
        "what": row.what.format(rank=shape.rank),
        "kind": row.kind,
        "bar": row.bar,
        "sense": row.sense if row.bar is not None else None,
        "met": met(value, row.bar, row.sense),
        "first": {"method": method, **(described(shape) if trains else {})},
        "second": {"method": row.second[0], **(described(row.second[1]) if trains else {})},
        "shape": str(shape) if trains else None,
        "batch": shape.batch if trains else None,
        "k": shape.k if trains else None,
        "device": device_name(shape.device) if found else shape.device,
        "threads": row.threads,
        "precision": shape.precision if trains else None,
        "versions": versions(),
        "measured": today() if found else None,
        "note": "" if found else NO_GPU if row.on_gpu else NOT_SELECTED,
        **(found or empty),
    }


def verdict(line: dict[str, Any]) -> str:
    """The outcome of a row: met, MISSED, reported, or why it was not measured."""
    if line["ratio"] is None:
        return str(line["note"])
    return {True: "met", False: "MISSED", None: "reported"}[line["met"]]


def table(lines: Sequence[dict[str, Any]], quick: bool) -> Table:
    """The rows as a table for the terminal."""
    title = "ratios, A / B" + (" (--quick: the shapes are not those of the bars)" if quick else "")
    shown = Table("what", "where", "ratio", "min..max", "A, B", "bar", "", title=title)
    for line in lines:
        setting = f"{line['shape']}, k={line['k']}, batch {line['batch']}, {line['precision']}"
        bar = "" if line["bar"] is None else f"{'<=' if line['sense'] == 'at most' else '>='} {line['bar']}"
        where = f"{'' if line['shape'] is None else setting + '; '}{line['device']}, {line['threads']} threads"
        if line["ratio"] is None:
            shown.add_row(line["what"], where, "", "", "", bar, verdict(line))
            continue
        spread = f"{line['ratio']['min']:.3f}..{line['ratio']['max']:.3f} ({line['repeats']})"
        sides = ", ".join(human(value, line["unit"]) for value in line["medians"])
        note = f"; {line['note']}" if line["note"] else ""
        shown.add_row(
            line["what"], where, f"{line['ratio']['median']:.3f}", spread, sides, bar, verdict(line) + note
        )
    return shown


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    made: dict[str, set[str]] = {}
    for line in lines:
        if line["ratio"]:
            parts = [f"{name} {version}" for name, version in line["versions"].items()]
            made.setdefault(", ".join([*parts, line["measured"]]), set()).add(line["device"])
    notes = "; ".join(f"{', '.join(sorted(devices))}: {own}" for own, devices in made.items())
    rows = ["| A / B | where | ratio | bar | |", "|---|---|---|---|---|"]
    for line in lines:
        bar = "" if line["bar"] is None else f"{'<=' if line['sense'] == 'at most' else '>='} {line['bar']}"
        shape = f"{line['shape']}, k={line['k']}, batch {line['batch']}, {line['precision']}; "
        where = f"{shape if line['shape'] else ''}{line['device']}, {line['threads']} threads"
        ratio = f"{line['ratio']['median']:.3f}" if line["ratio"] else ""
        rows.append(f"| {line['what']} | {where} | {ratio} | {bar} | {verdict(line)} |")
    return "\n".join([*rows, "", f"Median of interleaved pairs. {notes}."])


def human(value: float, unit: str) -> str:
    """A value with its unit."""
    return f"{value / 2**20:.0f} MiB" if unit == "bytes" else f"{value:.3g} {unit}"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file (default: docs/bench.json)")
    parser.add_argument(
        "--page", type=Path, help="Markdown page whose table is updated (`make bench`: docs/how-cost-grows.md)"
    )
    parser.add_argument("--gpu", action="store_true", help="only the GPU rows")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one or two repeats")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these rows")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # arguments of a child process; see cpu_peak_in_child
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.peak_of:
        method, shape, number = json.loads(options.peak_of)
        print(json.dumps(cpu_peak(method, Shape(**shape), number)))
        return 0
    every = [shrunk(row) if options.quick else row for row in rows()]
    if unknown := set(options.only or ()) - {row.name for row in every}:
        raise SystemExit(
            f"--only: unknown row {', '.join(sorted(unknown))}; available: {', '.join(r.name for r in every)}"
        )
    before = read_json(options.output) or {"rows": [], "quick": options.quick}
    kept = {line["name"]: line for line in before["rows"] if before["quick"] == options.quick}
    lines = []
    for row in every:
        selected = row.on_gpu if options.gpu else row.name in (options.only or [row.name])
        possible = torch.cuda.is_available() or not row.on_gpu
        if selected and possible:
            sys.stderr.write(f"{row.name} ...\n")
            lines.append(entry(row, measure(row)))
        else:
            lines.append(kept.get(row.name) or entry(row, None))
    write_json(options.output, {"quick": options.quick, "rows": lines})
    Console(width=None if sys.stdout.isatty() else 160).print(table(lines, options.quick))
    if options.page and not options.quick:
        options.page.write_text(fill(options.page.read_text(), "bench.py", markdown(lines)))
    print(f"JSON: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
