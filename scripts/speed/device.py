"""Everything that only a GPU can tell, in one call of at most nine minutes; without a GPU it says so in one line.

    python -m scripts.speed.device                      # every part (`make device`)
    python -m scripts.speed.device --only eager recipe  # some parts
    python -m scripts.speed.device --tiny --device cpu --output FILE  # tiny shapes: only tests the script

Every part runs in a process of its own with its own time limit, the most important first. A row is appended to
docs/device.jsonl as soon as it is measured; the last row of a name counts on docs/device.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.speed.device_parts import PARTS, ROWS, Found, Setting, selected
from scripts.speed.measure import device_name, fill, met, today, versions

OUTPUT, PAGE = Path("docs/device.jsonl"), Path("docs/device.md")
TOTAL = 525.0
"""Seconds for all parts; nine minutes with the start and the end."""

LEAST = 5.0
"""Seconds below which no part is started."""

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[[dict[str, Any]], None]


def entry(found: Found, setting: Setting) -> dict[str, Any]:
    """A measured row as JSON."""
    name, value, details = found
    about = ROWS[name]
    return {
        "name": name,
        **asdict(about),
        "value": value,
        "met": met(value, about.bar, about.sense),
        "details": details,
        "tiny": setting.tiny,
        "device": device_name(setting.device),
        "command": f"python -m scripts.speed.device --only {about.part}{' --tiny' if setting.tiny else ''}",
        "versions": {**versions(), "cuda": torch.version.cuda},
        "measured": today(),
    }


def run_part(name: str, setting: Setting, write: Write) -> None:
    """Measure a part in this process; an error becomes a line on stderr."""
    try:
        for found in PARTS[name].run(setting):
            write(entry(found, setting))
    except Exception as error:
        sys.stderr.write(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}\n")


def run_in_child(name: str, setting: Setting, write: Write, limit: float) -> None:
    """Measure a part in a new process, which is stopped after `limit` seconds; its rows so far are kept."""
    command = [sys.executable, "-m", "scripts.speed.device", "--part", name, "--device", setting.device]
    command += ["--tiny"] if setting.tiny else []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        timer = threading.Timer(limit, child.kill)
        timer.start()
        try:
            for line in child.stdout or ():
                if line.startswith("{"):
                    write(json.loads(line))
        finally:
            timer.cancel()
            child.kill()
    if child.returncode < 0:
        sys.stderr.write(f"{name}: stopped after {limit:.0f} s, with the rows so far\n")


def measure(names: Iterable[str], setting: Setting, write: Write, total: float, inside: bool) -> None:
    """Measure parts one after the other, as far as the time goes. inside: in this process, without limits."""
    end = time.monotonic() + total
    for name in names:
        left = end - time.monotonic()
        if left < LEAST and not inside:
            sys.stderr.write(f"{name}: not started, no time is left\n")
            continue
        sys.stderr.write(f"{name} ...\n")
        if inside:
            run_part(name, setting, write)
        else:
            run_in_child(name, setting, write, min(PARTS[name].limit, left))


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of every name in a file of JSON lines."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def human(value: float, unit: str) -> str:
    """A value with its unit."""
    return (
        f"{value / 2**30:.2f} GiB" if unit == "bytes" else f"{value:.3f}" if unit == "x" else f"{value:.3g} {unit}"
    )


def sides(row: dict[str, Any]) -> str:
    """The two sides of a ratio, with their unit."""
    medians = row["details"].get("medians")
    if not medians:
        return ""
    return ", ".join(f"{value:.3g}" for value in medians) + f" {row['details']['unit_of_medians']}"


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """All rows as a Markdown table, also those that are not measured yet."""
    lines = ["| what | value | both sides | bar | | device |", "|---|---|---|---|---|---|"]
    for name, about in ROWS.items():
        row = found.get(name)
        bar = "" if about.bar is None else f"{'<=' if about.sense == 'at most' else '>='} {about.bar:g}"
        bar += f" {about.unit}" if bar and about.unit == "s" else ""
        if row is None:
            lines.append(f"| {about.what} | | | {bar} | not measured yet | |")
            continue
        state = {True: "met", False: "MISSED", None: "reported"}[met(row["value"], about.bar, about.sense)]
        where = f"{row['device']}, torch {row['versions']['torch']}, {row['measured']}"
        value = human(row["value"], about.unit)
        lines.append(f"| {about.what} | {value} | {sides(row)} | {bar} | {state} | {where} |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON lines (default: docs/device.jsonl)")
    parser.add_argument("--page", type=Path, help="page whose table is updated (`make device`: docs/device.md)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --tiny (default: cuda)")
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"only these parts: {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"for all parts (default: {TOTAL:g})")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, in this process")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # the process of one part
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    chosen = selected(options.only)
    setting = Setting(options.device, options.tiny)
    if options.device == "cpu" and not options.tiny:
        raise SystemExit("--device cpu measures nothing of use: add --tiny to test the script.")
    if options.device != "cpu" and not torch.cuda.is_available():
        print(f"no CUDA device: nothing was measured, {options.output} is unchanged.")
        return 0
    if options.part:
        run_part(options.part, setting, lambda row: print(json.dumps(row), flush=True))
        return 0
    if options.tiny and options.output == OUTPUT:
        raise SystemExit("--tiny: the values are not those of the bars; pass another --output.")
    options.output.parent.mkdir(parents=True, exist_ok=True)

    def write(row: dict[str, Any]) -> None:
        with options.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"  {row['what']}: {human(row['value'], row['unit'])} {sides(row)}".rstrip(), flush=True)

    measure(chosen, setting, write, options.seconds, inside=options.tiny)
    if options.page:
        options.page.write_text(fill(options.page.read_text(), "device.py", markdown(rows_of(options.output))))
    print(f"JSON lines: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
