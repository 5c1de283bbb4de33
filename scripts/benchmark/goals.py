"""The goals of `method=fs_merge` compared with the measured rows, the effect of scrambling, and missing rows."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence

from scripts.benchmark.intervals import Cell, Row, difference, relative, relative_interval, text_of

GOALS = {2: {"16": 95.0, "50": 99.0, "500": 99.5, "auxiliary": 92.0}, 4: {"50": 97.0}}
"""Per cent of the sources' accuracy, by number of sources (vision transformers) and images per task."""

GOALS_HEAD = """For `fs_merge`: the per cent of the sources' accuracy and its goal (goals are defined for the mean
of three seeds); the paired difference from the better of kd and fs_merge_paper, in points; the joint accuracy
minus that of the ensemble, in points, plain and with both calibrated in the same way. The joint accuracy has no
interval: with about 1000 test images, one point is about one standard error."""

SCRAMBLED_HEAD = """In the second source, hidden units and heads are permuted, and Q/K and V/O are rotated inside
every head; its function is unchanged. The table shows the difference in points from the original pair with the
same seeds, paired image by image. A method that undoes permutations exactly can still lose accuracy because of
the rotations."""


MISSING_HEAD = """Rows of the full matrix (`make quality-full`) that are not measured yet, by images per task and
method: each group with the number of finished seeds, out of three. Combinations that are not listed are
complete."""

Block = tuple[str, str, tuple[str, ...], tuple[int, ...]]
"""Group, images per task (or the key of the auxiliary data), methods, seeds."""


def paragraph(text: str) -> str:
    """The text as one paragraph, wrapped at a fixed width."""
    return textwrap.fill(" ".join(text.split()), 110, break_on_hyphens=False) + "\n"


def goals(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], order: Sequence[Cell]) -> str:
    """One line per cell with rows of fs_merge."""
    lines = [
        "## The goals\n",
        paragraph(GOALS_HEAD),
        "| group | images | seeds | goal | % of the sources | to the better baseline | joint | calibrated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured = [cell for cell in order if cells[cell].get("fs_merge")]
    for group, images in sorted(measured, key=lambda cell: int(cell[1]) if cell[1].isdigit() else 0):
        found = cells[group, images]["fs_merge"]
        low, high = relative_interval(found)
        lines.append(
            f"| {group} | {images} | {len(found)} | {_met(_goal(group, images, found), relative(found))} | "
            f"{relative(found):.2f} [{low:.1f}, {high:.1f}] | {_gain(cells[group, images])} | "
            f"{_joint_gap(found, 'softmax')} | {_joint_gap(found, 'softmax_calibrated')} |"
        )
    for images, goal in GOALS[2].items():
        same = [(group, cells[group, images]["fs_merge"]) for group, count in measured if count == images]
        pairs = [found for group, found in same if _goal(group, images, found) == goal]
        if len(pairs) > 1:
            value = statistics.mean(map(relative, pairs))
            lines.append(f"| mean of {len(pairs)} pairs | {images} | | {_met(goal, value)} | {value:.2f} | | | |")
    return "\n".join(lines) + "\n"


def _goal(group: str, images: str, found: Sequence[Row]) -> float | None:
    return None if group == "digits_mlp_pair" else GOALS.get(len(found[0]["tasks"]), {}).get(images)


def _met(goal: float | None, value: float) -> str:
    return "-" if goal is None else f"{goal:g}, {'met' if value >= goal else 'missed'}"


def _gain(methods: Mapping[str, Sequence[Row]]) -> str:
    """The difference from the better baseline, on the seeds in common."""
    baselines = [(name, methods[name]) for name in ("kd", "fs_merge_paper") if name in methods]
    seeds = {row["seed"] for row in methods["fs_merge"]}
    shared = {name: [row for row in rows if row["seed"] in seeds] for name, rows in baselines}
    shared = {name: rows for name, rows in shared.items() if rows}
    if not shared:
        return "-"
    name = max(shared, key=lambda baseline: relative(shared[baseline]))
    return f"{name} {text_of(difference(methods['fs_merge'], shared[name]))}"


def _joint_gap(found: Sequence[Row], protocol: str) -> str:
    gaps = [row["joint"][protocol] - row["ensemble_joint"][protocol] for row in found if protocol in row["joint"]]
    return f"{100 * statistics.mean(gaps):+.1f}" if gaps else "-"


def scrambling_effect(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], order: Sequence[Cell]) -> list[str]:
    """The accuracy change of every method if one source is replaced by a scrambled copy; [] without such rows."""
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
    title = "## The effect of scrambling one source\n"
    return [title, paragraph(SCRAMBLED_HEAD), "\n".join([*head, *lines]) + "\n"] if lines else []


def missing_rows(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], blocks: Sequence[Block]) -> list[str]:
    """The combinations of the blocks that have no row yet; [] if all have one."""
    seeds: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for group, images, methods, planned in blocks:
        for method in methods:
            done = {row["seed"] for row in cells.get((group, images), {}).get(method, ())}
            seeds.setdefault((images, method), {}).setdefault(group, []).extend(seed in done for seed in planned)
    lines = []
    for (images, method), groups in sorted(seeds.items()):
        incomplete = [f"{group} {sum(finished)}" for group, finished in groups.items() if not all(finished)]
        if incomplete:
            lines.append(f"| {images} | {method} | {', '.join(incomplete)} |")
    head = ["| images | method | groups with finished seeds |", "|---|---|---|"]
    return ["## Not measured yet\n", paragraph(MISSING_HEAD), "\n".join([*head, *lines]) + "\n"] if lines else []
