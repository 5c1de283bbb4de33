"""Ratios, memory and machine information for the measuring scripts; independent of the library."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

Sense = Literal["at most", "at least"]


def met(value: float | None, bar: float | None, sense: Sense = "at most") -> bool | None:
    """Whether a value meets its bar, inclusive; None without a value or without a bar."""
    if value is None or bar is None:
        return None
    return value <= bar if sense == "at most" else value >= bar


def interleaved(
    first: Callable[[], float], second: Callable[[], float], repeats: int, warm: int = 1
) -> list[tuple[float, float]]:
    """Values of A and B measured in turn, A B A B ..., so that slow periods affect both.

    The first `warm` pairs are discarded.
    """
    pairs = [(first(), second()) for _ in range(warm + repeats)]
    return pairs[warm:]


def ratios(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Min, median and max of A / B over the pairs, and the median of each side."""
    each = [a / b for a, b in pairs]
    return {
        "repeats": len(pairs),
        "ratio": {"min": min(each), "median": statistics.median(each), "max": max(each)},
        "medians": [statistics.median(side) for side in zip(*pairs)],
    }


def linear(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    slope, start = statistics.linear_regression(x, y)
    return slope, start


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set torch's number of CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def child_environment(number: int) -> dict[str, str]:
    """Environment of a measured child process: number of threads; heap settings are unchanged."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(number),
        "MKL_NUM_THREADS": str(number),
    }


def memory(process: int | str = "self") -> dict[str, int]:
    """VmRSS, VmHWM, RssAnon, RssFile in bytes; empty if the process has ended or the kernel does not report it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = ("VmRSS", "VmHWM", "RssAnon", "RssFile")
    return {name: int(found[name].split()[0]) * 1024 for name in fields if name in found}


def reset_peak() -> bool:
    """Reset VmHWM to the current resident size; False if the kernel does not support it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def device_name(device: str) -> str:
    """The model name of the processor or the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of Python, torch and timm."""
    return {"python": platform.python_version(), "torch": torch.__version__, "timm": version("timm")}


def today() -> str:
    """The date of a measurement (UTC)."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def read_json(path: Path) -> Any:
    """The content of a file; None if it does not exist."""
    return json.loads(path.read_text()) if path.is_file() else None


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def fill(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of the script `name`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"the page must contain each of the lines {begin} and {end} exactly once.")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"
