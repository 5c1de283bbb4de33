"""Measurement of both sides of a ratio: training steps, memory, teacher forward passes, processes."""

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

from scripts.speed.cases import Case, Shape, free_memory, timed
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
    """Ratios of one row, measured according to its kind."""
    with threads(row.threads):
        found = {"step": step_ratio, "memory": memory_ratio, "teacher": teacher_ratio, "help": help_ratio}[
            row.kind
        ](row)
    free_memory()
    return found


def step_ratio(row: Row) -> dict[str, Any]:
    """Seconds of a training step of both sides, in one process."""
    (method, shape), (other, other_shape) = row.first, row.second
    case = Case(shape)
    second_case = case if other_shape == shape else Case(other_shape)
    a, b = case.step(method), second_case.step(other)
    warm = 3 if row.on_gpu else 1
    pairs = interleaved(partial(timed, a, shape.device), partial(timed, b, shape.device), row.repeats, warm)
    return {**ratios(pairs), "unit": "s"}


def memory_ratio(row: Row) -> dict[str, Any]:
    """Peak bytes of a step, without the frozen sources and without the memory allocated before the case.

    On a CPU every value is measured in a separate process; on a GPU it is reported by the allocator.
    """
    peaks: list[dict[str, int]] = []

    def one(side: tuple[str, Shape]) -> float:
        peaks.append(gpu_peak(*side) if row.on_gpu else cpu_peak_in_child(*side, row.threads, row.mapped))
        return float(peaks[-1]["step"])

    pairs = interleaved(partial(one, row.first), partial(one, row.second), row.repeats, warm=0)
    frozen, base = peaks[0]["frozen"], peaks[0]["before"]
    note = f"excluding frozen sources: {frozen / 2**20:.0f} MiB"
    note += "" if row.on_gpu else f"; excluding interpreter and libraries: {base / 2**20:.0f} MiB"
    return {**ratios(pairs), "unit": "bytes", "note": note, "frozen_bytes": frozen}


def gpu_peak(method: str, shape: Shape) -> dict[str, int]:
    """The allocator's peak during one step after a warm-up step."""
    free_memory()
    case = Case(shape)
    step = case.step(method)
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    # The student of KD does not hold the sources; the SuperNet keeps them on the device.
    held = 0 if method == "kd" else case.held_bytes
    return {"step": peak - held, "frozen": case.frozen_bytes, "before": 0}


def cpu_peak_in_child(method: str, shape: Shape, number: int, mapped: bool) -> dict[str, int]:
    """`cpu_peak` in a new process, which prints the values as JSON."""
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
    """Peak resident memory of one step after a warm-up step, in this process, with `number` threads."""
    torch.set_num_threads(number)
    tiny = Case(replace(shape, **QUICK)).step(method)
    tiny()  # loads libraries and starts threads, so that they count as allocated before
    del tiny
    free_memory()
    before = memory()["VmRSS"]
    case = Case(shape)
    with case.hardware.session():  # the same process settings as in a run
        step = case.step(method)
        step()
        free_memory()
        if not reset_peak():
            sys.stderr.write(
                "the kernel cannot reset the peak memory: the value is the peak since the start of the process\n"
            )
        step()
    return {
        "step": memory()["VmHWM"] - before - case.frozen_bytes,
        "frozen": case.frozen_bytes,
        "before": before,
    }


def teacher_ratio(row: Row) -> dict[str, Any]:
    """Images per second of a forward pass of all sources over all images: the library's and a plain loop."""
    shape = row.first[1]
    case, images = Case(shape), shape.k * shape.batch
    plain = case.plain_pass(shape.batch)

    def library() -> None:
        case.capture("all", shape.batch)

    def speed(run: Callable[[], Any]) -> float:
        return images / timed(run, shape.device)

    return {**ratios(interleaved(partial(speed, library), partial(speed, plain), row.repeats)), "unit": "images/s"}


def help_ratio(row: Row) -> dict[str, Any]:
    """Wall-clock time of whole processes."""
    script = Path(sys.executable).with_name("fsmerge")
    ours = [str(script)] if script.is_file() else [sys.executable, "-m", "fsmerge_cli"]

    def seconds(command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    hydra = partial(seconds, [sys.executable, "-c", "import hydra"])
    return {**ratios(interleaved(partial(seconds, [*ours, "--help"]), hydra, row.repeats)), "unit": "s"}
