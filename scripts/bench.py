"""Is FS-Merge as fast as distillation? Ratios measured side by side in one run, each with its bar.

    python scripts/bench.py            # everything that this machine can measure (`make bench`)
    python scripts/bench.py --gpu      # the GPU's rows alone, into the same file; needs the library, no Hydra
    python scripts/bench.py --quick    # tiny shapes, seconds: shows that the script works, and nothing else

Two things are run in turn, A B A B ...; the figure is the median of A / B over the pairs, without a warm-up of
each. A step is forward, loss, backward, clipping and AdamW, on the same images and targets for both. Rows that
this machine cannot measure keep what the file says of them. A missed bar is reported; the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from cases import Case, Shape, described, release, timed
from measure import (
    Sense,
    child_environment,
    device_name,
    fill,
    interleaved,
    memory,
    met,
    ratios,
    read_json,
    reset_peak,
    threads,
    today,
    versions,
    write_json,
)
from rich.console import Console
from rich.table import Table

THREADS = 2
OUTPUT = Path("docs/bench.json")
NO_GPU, NOT_ASKED = "unmeasured: no CUDA device", "unmeasured: not asked for"
QUICK = {"width": 64, "depth": 1, "batch": 8, "rank": 2, "size": 32}


@dataclass(frozen=True)
class Row:
    """One ratio: `first` over `second`, each a method and its shape; bar None: reported only.

    kind: step (seconds of a training step), memory (peak bytes of a step), teacher (seconds of a pass of all
    sources; the ratio is of images per second), help (wall time of a whole process). mapped: of memory on a CPU;
    glibc keeps freed pieces of less than 32 MB in its heap, where holes count as used, and here it may not.
    """

    name: str
    what: str
    kind: Literal["step", "memory", "teacher", "help"]
    first: tuple[str, Shape]
    second: tuple[str, Shape]
    bar: float | None = None
    sense: Sense = "at most"
    repeats: int = 5
    threads: int = THREADS
    mapped: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether it needs one."""
        return self.first[1].device != "cpu"


def rows() -> list[Row]:
    """Every row, in the order of the table."""
    cpu32, cpu128 = Shape(batch=32), Shape(batch=128, depth=1)
    gpu = Shape(batch=128, depth=12, device="cuda", precision="bf16")
    compiled, eight = replace(gpu, compile=True), replace(cpu128, k=8)
    low, full, kd = "low_rank", "full", "kd"
    return [
        Row(
            "step-low-rank-cpu",
            "FS-Merge low-rank {rank} / KD",
            "step",
            (low, cpu32),
            (kd, cpu32),
            1.12,
            repeats=7,
        ),
        Row("step-full-cpu", "FS-Merge full maps / KD", "step", (full, cpu128), (kd, cpu128), 1.35),
        Row("step-low-rank-gpu", "FS-Merge low-rank {rank} / KD", "step", (low, gpu), (kd, gpu), 1.05, repeats=20),
        Row("step-full-gpu", "FS-Merge full maps / KD", "step", (full, gpu), (kd, gpu), repeats=20),
        Row("step-low-rank-gpu-compiled", "the same, both compiled", "step", (low, compiled), (kd, compiled)),
        Row("step-k8-k2-cpu", "FS-Merge low-rank {rank}, k=8 / k=2", "step", (low, eight), (low, cpu128), 1.25),
        Row(
            "memory-cpu", "peak memory: low-rank {rank} / KD", "memory", (low, cpu32), (kd, cpu32), 1.15, repeats=3
        ),
        Row(
            "memory-cpu-tensors",
            "the same, every large tensor mapped alone: no holes in the heap",
            "memory",
            (low, cpu32),
            (kd, cpu32),
            1.15,
            repeats=3,
            mapped=True,
        ),
        Row("memory-gpu", "peak memory: low-rank {rank} / KD", "memory", (low, gpu), (kd, gpu), 1.15, repeats=3),
        Row(
            "step-unfolded-folded-cpu",
            "unfolded with full maps, as published / folded low-rank {rank}",
            "step",
            ("unfolded", cpu32),
            (low, cpu32),
            repeats=3,
        ),
        Row(
            "teacher-cpu",
            "images per second: feature capture / plain loop of timm",
            "teacher",
            ("capture", cpu32),
            ("timm", cpu32),
            0.95,
            "at least",
        ),
        Row(
            "help",
            "fsmerge --help / python -c 'import hydra'",
            "help",
            ("fsmerge", Shape()),
            ("hydra", Shape()),
            1.5,
            repeats=9,
        ),
    ]


def shrunk(row: Row) -> Row:
    """The row at a tiny shape, for which a second thread is only a burden; k, device and precision stay."""
    first, second = ((method, replace(shape, **QUICK)) for method, shape in (row.first, row.second))
    return replace(row, first=first, second=second, threads=1, repeats=1 if row.kind == "memory" else 2)


def measure(row: Row) -> dict[str, Any]:
    """Figures of one row, by its kind."""
    with threads(row.threads):
        found = {"step": of_steps, "memory": of_memory, "teacher": of_teacher, "help": of_help}[row.kind](row)
    release()
    return found


def of_steps(row: Row) -> dict[str, Any]:
    """Seconds of a training step against another's, in one process."""
    (method, shape), (other, other_shape) = row.first, row.second
    case = Case(shape)
    second_case = case if other_shape == shape else Case(other_shape)
    a, b = case.step(method), second_case.step(other)
    warm = 3 if row.on_gpu else 1
    pairs = interleaved(partial(timed, a, shape.device), partial(timed, b, shape.device), row.repeats, warm)
    return {**ratios(pairs), "unit": "s"}


def of_memory(row: Row) -> dict[str, Any]:
    """Peak bytes of a step, without the frozen sources and without what the process held before the case.

    On a CPU every figure is of a process of its own; on a GPU the allocator counts.
    """
    said: list[dict[str, int]] = []

    def one(side: tuple[str, Shape]) -> float:
        said.append(gpu_peak(*side) if row.on_gpu else cpu_peak_in_child(*side, row.threads, row.mapped))
        return float(said[-1]["step"])

    pairs = interleaved(partial(one, row.first), partial(one, row.second), row.repeats, warm=0)
    frozen, base = said[0]["frozen"], said[0]["before"]
    note = f"frozen sources apart: {frozen / 2**20:.0f} MiB"
    note += "" if row.on_gpu else f"; interpreter and libraries apart: {base / 2**20:.0f} MiB"
    return {**ratios(pairs), "unit": "bytes", "note": note, "frozen_bytes": frozen}


def gpu_peak(method: str, shape: Shape) -> dict[str, int]:
    """The allocator's peak during one step after a warm-up."""
    release()
    case = Case(shape)
    step = case.step(method)
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    # A student of distillation holds no sources; the SuperNet has them on the device.
    held = 0 if method == "kd" else case.held_bytes
    return {"step": peak - held, "frozen": case.frozen_bytes, "before": 0}


def cpu_peak_in_child(method: str, shape: Shape, number: int, mapped: bool) -> dict[str, int]:
    """The same in a fresh process, which prints what it finds."""
    environment = child_environment(number) | ({"MALLOC_MMAP_THRESHOLD_": str(2**20)} if mapped else {})
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--peak-of",
        json.dumps([method, asdict(shape), number]),
    ]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=1200)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def cpu_peak(method: str, shape: Shape, number: int) -> dict[str, int]:
    """Peak resident memory of one step after a warm-up, in this process, with that number of threads."""
    torch.set_num_threads(number)
    tiny = Case(replace(shape, **QUICK)).step(method)
    tiny()  # what it needs of libraries and threads is loaded now, and counted as there before
    del tiny
    release()
    before = memory()["VmRSS"]
    case = Case(shape)
    with case.hardware.session():  # as in a run, with what it sets for the process
        step = case.step(method)
        step()
        release()
        if not reset_peak():
            sys.stderr.write("the peak cannot be reset here: it is the largest since the process began\n")
        step()
    return {
        "step": memory()["VmHWM"] - before - case.frozen_bytes,
        "frozen": case.frozen_bytes,
        "before": before,
    }


def of_teacher(row: Row) -> dict[str, Any]:
    """A pass of all sources over all images, the library's and a plain loop's, in images per second."""
    shape = row.first[1]
    case, images = Case(shape), shape.k * shape.batch
    plain = case.plain_pass(shape.batch)

    def library() -> None:
        case.capture("all", shape.batch)

    def speed(run: Callable[[], Any]) -> float:
        return images / timed(run, shape.device)

    return {**ratios(interleaved(partial(speed, library), partial(speed, plain), row.repeats)), "unit": "images/s"}


def of_help(row: Row) -> dict[str, Any]:
    """Wall time of whole processes."""
    script = Path(sys.executable).with_name("fsmerge")
    ours = [str(script)] if script.is_file() else [sys.executable, "-m", "fsmerge_cli"]

    def seconds(command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    hydra = partial(seconds, [sys.executable, "-c", "import hydra"])
    return {**ratios(interleaved(partial(seconds, [*ours, "--help"]), hydra, row.repeats)), "unit": "s"}


def entry(row: Row, found: dict[str, Any] | None) -> dict[str, Any]:
    """A row as JSON; found None: this machine cannot measure it."""
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
        "note": "" if found else NO_GPU if row.on_gpu else NOT_ASKED,
        **(found or empty),
    }


def verdict(line: dict[str, Any]) -> str:
    """A row's outcome in words."""
    if line["ratio"] is None:
        return str(line["note"])
    return {True: "met", False: "MISSED", None: "reported"}[line["met"]]


def table(lines: Sequence[dict[str, Any]], quick: bool) -> Table:
    """The rows for a person."""
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
    """The rows for the README."""
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
    """A figure with its unit."""
    return f"{value / 2**20:.0f} MiB" if unit == "bytes" else f"{value:.3g} {unit}"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file (default: docs/bench.json)")
    parser.add_argument("--page", type=Path, help="Markdown page whose table is filled (`make bench`: README.md)")
    parser.add_argument("--gpu", action="store_true", help="the GPU's rows alone")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, a repeat or two")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows alone")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # what a child is asked; see cpu_peak_in_child
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.peak_of:
        method, shape, number = json.loads(options.peak_of)
        print(json.dumps(cpu_peak(method, Shape(**shape), number)))
        return 0
    every = [shrunk(row) if options.quick else row for row in rows()]
    if unknown := set(options.only or ()) - {row.name for row in every}:
        raise SystemExit(f"--only: no row {', '.join(sorted(unknown))}. There are {[r.name for r in every]}")
    before = read_json(options.output) or {"rows": [], "quick": options.quick}
    kept = {line["name"]: line for line in before["rows"] if before["quick"] == options.quick}
    lines = []
    for row in every:
        asked = row.on_gpu if options.gpu else row.name in (options.only or [row.name])
        possible = torch.cuda.is_available() or not row.on_gpu
        if asked and possible:
            sys.stderr.write(f"{row.name} ...\n")
            lines.append(entry(row, measure(row)))
        else:
            lines.append(kept.get(row.name) or entry(row, None))
    write_json(options.output, {"quick": options.quick, "rows": lines})
    Console(width=None if sys.stdout.isatty() else 160).print(table(lines, options.quick))
    if options.page and not options.quick:
        options.page.write_text(fill(options.page.read_text(), "bench.py", markdown(lines)))
    print(f"as JSON: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
