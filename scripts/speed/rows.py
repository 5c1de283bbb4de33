"""The measured ratios, each with its shapes and its bar."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from scripts.speed.cases import Shape
from scripts.speed.measure import (
    Sense,
)

THREADS = 2
QUICK = {"width": 64, "depth": 1, "batch": 8, "rank": 2, "size": 32}


@dataclass(frozen=True)
class Row:
    """One ratio, `first` over `second`, each a method and its shape. bar None: reported only.

    kind: step (seconds of a training step), memory (peak bytes of a step), teacher (images per second of a forward
    pass of all sources), help (wall-clock time of a whole process). mapped (memory on a CPU): large tensors get
    their own memory maps; otherwise glibc keeps freed blocks below 32 MB in its heap, where fragmentation counts
    as used.
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
        """Whether the row needs a GPU."""
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
            "the same, each large tensor in its own memory map (no heap fragmentation)",
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
    """The row at a tiny shape with one thread; k, device and precision are unchanged."""
    first, second = ((method, replace(shape, **QUICK)) for method, shape in (row.first, row.second))
    return replace(row, first=first, second=second, threads=1, repeats=1 if row.kind == "memory" else 2)
