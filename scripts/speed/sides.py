"""How both sides of a ratio are measured: steps, memory, passes of the teachers, processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts.speed.cases import Case, Shape, release, timed
from scripts.speed.measure import (
    child_environment,
    interleaved,
    memory,
    ratios,
    reset_peak,
    threads,
)
from scripts.speed.rows import QUICK, Row

ROOT = Path(__file__).resolve().parents[2]


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
        *(sys.executable, "-m", "scripts.speed.bench"),
        "--peak-of",
        json.dumps([method, asdict(shape), number]),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=1200
    )
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
