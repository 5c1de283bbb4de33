"""What the benchmark's rows say about the goals of `method=fs_merge`, and what scrambling one source costs."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence

from scripts.benchmark.intervals import Cell, Row, difference, relative, relative_interval, text_of

GOALS = {2: {"16": 95.0, "50": 99.0, "500": 99.5, "auxiliary": 92.0}, 4: {"50": 97.0}}
"""Per cent of the sources' accuracy, by number of sources (vision transformers) and images per task."""

GOALS_HEAD = """Of `fs_merge`: the share of the sources' accuracy beside its goal, which is one for three seeds;
the difference to the better of kd and fs_merge_paper in points, paired; joint accuracy less the ensemble's,
plain and with the same calibration on both sides, in points (no interval: over about 1000 test images a point
is about one standard error)."""

DROPS_HEAD = """The second source's hidden units and heads in another order, Q/K and V/O rotated inside every
head: the same function. The difference in points to the pair as it was, same seeds, paired image by image. A
method that undoes orders exactly can still lose by the rotations."""


GAPS_HEAD = """Of the whole matrix (`make quality-full`), by images per task and method: groups with their seeds of
three, where it is not all of them. What has no line here is complete."""

Block = tuple[str, str, tuple[str, ...], tuple[int, ...]]
"""Group, images per task (or what is asked instead), methods, seeds."""


def paragraph(text: str) -> str:
    """Text in lines of one width."""
    return textwrap.fill(" ".join(text.split()), 110, break_on_hyphens=False) + "\n"


def goals(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], order: Sequence[Cell]) -> str:
    """One line per cell that fs_merge was measured on."""
    lines = [
        "## The goals\n",
        paragraph(GOALS_HEAD),
        "| group | images | seeds | goal | % of the sources | to the better of | joint | calibrated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured = [cell for cell in order if cells[cell].get("fs_merge")]
    for group, images in sorted(measured, key=lambda cell: int(cell[1]) if cell[1].isdigit() else 0):
        found = cells[group, images]["fs_merge"]
        low, high = relative_interval(found)
        lines.append(
            f"| {group} | {images} | {len(found)} | {_met(_goal(group, images, found), relative(found))} | "
            f"{relative(found):.2f} [{low:.1f}, {high:.1f}] | {_better(cells[group, images])} | "
            f"{_joint_gap(found, 'softmax')} | {_joint_gap(found, 'softmax_calibrated')} |"
        )
    for images, goal in GOALS[2].items():
        own = [(group, cells[group, images]["fs_merge"]) for group, asked in measured if asked == images]
        pairs = [found for group, found in own if _goal(group, images, found) == goal]
        if len(pairs) > 1:
            value = statistics.mean(map(relative, pairs))
            lines.append(f"| mean of {len(pairs)} pairs | {images} | | {_met(goal, value)} | {value:.2f} | | | |")
    return "\n".join(lines) + "\n"


def _goal(group: str, images: str, found: Sequence[Row]) -> float | None:
    return None if group == "digits_mlp_pair" else GOALS.get(len(found[0]["tasks"]), {}).get(images)


def _met(goal: float | None, value: float) -> str:
    return "-" if goal is None else f"{goal:g}, {'met' if value >= goal else 'missed'}"


def _better(methods: Mapping[str, Sequence[Row]]) -> str:
    """The difference to the better of its rivals, on the seeds in common."""
    rivals = [(name, methods[name]) for name in ("kd", "fs_merge_paper") if name in methods]
    seeds = {row["seed"] for row in methods["fs_merge"]}
    shared = {name: [row for row in rows if row["seed"] in seeds] for name, rows in rivals}
    shared = {name: rows for name, rows in shared.items() if rows}
    if not shared:
        return "-"
    name = max(shared, key=lambda rival: relative(shared[rival]))
    return f"{name} {text_of(difference(methods['fs_merge'], shared[name]))}"


def _joint_gap(found: Sequence[Row], protocol: str) -> str:
    gaps = [row["joint"][protocol] - row["ensemble_joint"][protocol] for row in found if protocol in row["joint"]]
    return f"{100 * statistics.mean(gaps):+.1f}" if gaps else "-"


def drops(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], order: Sequence[Cell]) -> list[str]:
    """What every method loses where one of its sources is the same function in another basis; [] without such."""
    lines = []
    for group, images in order:
        plain = cells.get((group.removesuffix("_scrambled"), images), {})
        if not group.endswith("_scrambled"):
            continue
        for method, found in cells[group, images].items():
            gap = difference(found, plain.get(method, ()))
            if gap:
                lines.append(f"| {images} | {method} | {gap[0]} | {text_of(gap)} |")
    head = ["| images | method | seeds | difference, points |", "|---|---|---|---|"]
    title = "## The drop where one source is scrambled\n"
    return [title, paragraph(DROPS_HEAD), "\n".join([*head, *lines]) + "\n"] if lines else []


def gaps(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], blocks: Sequence[Block]) -> list[str]:
    """What of the blocks has no row yet; [] where all have one."""
    seeds: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for group, images, methods, own in blocks:
        for method in methods:
            done = {row["seed"] for row in cells.get((group, images), {}).get(method, ())}
            seeds.setdefault((images, method), {}).setdefault(group, []).extend(seed in done for seed in own)
    lines = []
    for (images, method), groups in sorted(seeds.items()):
        lacking = [f"{group} {sum(there)}" for group, there in groups.items() if not all(there)]
        if lacking:
            lines.append(f"| {images} | {method} | {', '.join(lacking)} |")
    head = ["| images | method | groups with their seeds |", "|---|---|---|"]
    return ["## Not measured yet\n", paragraph(GAPS_HEAD), "\n".join([*head, *lines]) + "\n"] if lines else []
