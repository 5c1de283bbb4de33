"""Coordinates of the charts of the report page, in per cent of the plot. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsmerge_cli.reporting import summary

Values = Mapping[str, Any]
STRONG = 0.735
"""Cell strength above which text takes the other colour; at it both have a contrast of 4.5 : 1."""
KINDS = ("ensemble", "average", "merged")
"""Rows with their own colour, in addition to the sources."""


@dataclass(frozen=True)
class Bar:
    """A top-1 accuracy, as a share. kind: sets the colour (source, ensemble, average, merged, other)."""

    name: str
    kind: str
    share: float
    interval: Sequence[float] | None


@dataclass(frozen=True)
class Panel:
    """Bars over one axis from 0 to 100 %. what: the images, or the protocol."""

    title: str
    what: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Line:
    """A curve in plot coordinates, both from 0 to 100, y downwards."""

    kind: str
    points: Sequence[tuple[float, float]]

    @property
    def path(self) -> str:
        """The `points` attribute of an SVG polyline."""
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in self.points)


@dataclass(frozen=True)
class Plot:
    """Curves with ticks (position, text); logarithmic: the y axis. kept: position and step of the kept weights."""

    lines: Sequence[Line]
    across: Sequence[tuple[float, str]]
    up: Sequence[tuple[float, str]]
    logarithmic: bool
    kept: tuple[float, int]


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map. strength: 0..1 (None: no value). text: short. title: in full, as a tooltip."""

    strength: float | None
    text: str
    title: str

    @property
    def strong(self) -> bool:
        """Whether the text needs the colour for dark cells."""
        return self.strength is not None and self.strength > STRONG


@dataclass(frozen=True)
class Heat:
    """Cells by row and column. columns: short names. names: full names of the columns."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    names: Sequence[str]


def panels(evaluation: Values) -> list[Panel]:
    """One panel per task with labels, then one per joint protocol."""
    rows = summary.shown_rows(evaluation)
    found = []
    for task in evaluation["tasks"]:
        own = {name: row["tasks"][task] for name, row in rows.items() if task in row["tasks"]}
        bars = [_bar(evaluation, name, t["top1"], t["interval"]) for name, t in own.items()]
        if bars:
            count = max(t["count"] for t in own.values())
            what = summary.counted_word(evaluation, "test images")
            found.append(Panel(task, f"{count:,} {what}, task given", bars))
    for protocol in ("softmax", "logits"):
        joint = {name: row["joint_top1"].get(protocol) for name, row in rows.items()}
        bars = [
            _bar(evaluation, name, share, summary.joint_interval(rows[name], protocol))
            for name, share in joint.items()
            if share is not None
        ]
        if bars:
            found.append(Panel("Joint accuracy", f"task not given, {summary.PROTOCOLS[protocol]}", bars))
    return found


def _bar(evaluation: Values, name: str, share: float, limits: Sequence[float] | None) -> Bar:
    kind = "source" if name in evaluation["tasks"] else name if name in KINDS else "other"
    return Bar("source" if kind == "source" else summary.row_name(evaluation, name), kind, share, limits)


def loss_plot(evaluation: Values) -> Plot | None:
    """Training and validation loss by step; None without training."""
    training = evaluation["training"]
    curves = {"training": training["curve"], "validation": training["validation"]}
    raw = {kind: [(p["step"], p["loss"]) for p in points] for kind, points in curves.items()}
    for kind in ("features", "logits"):
        raw[kind] = [(p["step"], p[kind]) for p in training["validation_parts"] if p[kind] > 0]
    values = [loss for points in raw.values() for _, loss in points if math.isfinite(loss)]
    if not raw["training"] or not values:
        return None
    logarithmic = min(values) > 0 and max(values) > 10 * min(values)
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    marks = decades(min(values), max(values)) if logarithmic else steps(min(0.0, *values), max(values))
    low, high = marks[0], marks[-1]
    if logarithmic:
        low, high = scale(min(values)), scale(max(values))
        low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    last: float = max(step for points in raw.values() for step, _ in points)

    def x(step: float) -> float:
        return 100 * step / last

    def y(loss: float) -> float:
        return 100 * (1.0 - (scale(loss) - low) / ((high - low) or 1))

    lines = [
        Line(kind, [(x(step), y(loss)) for step, loss in points if math.isfinite(loss)])
        for kind, points in raw.items()
        if points
    ]
    across = [(x(step), f"{step:,.0f}") for step in steps(0, last) if step == int(step) and step <= last]
    chosen = training["chosen_step"]
    return Plot(lines, across, [(y(m), f"{m:g}") for m in marks], logarithmic, (x(min(chosen, last)), chosen))


def steps(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`; the first and last enclose the range.

    >>> steps(0, 1000), steps(0, 0.07)
    ([0.0, 200.0, 400.0, 600.0, 800.0, 1000.0], [0.0, 0.02, 0.04, 0.06, 0.08])
    """
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [float(f"{i * size:.12g}") for i in range(first, max(last, first + 1) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten between positive numbers; for short ranges also 2 and 5 times those.

    >>> decades(0.03, 2), decades(1e-6, 1)
    ([0.05, 0.1, 0.2, 0.5, 1.0, 2.0], [1e-06, 1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if high < 300 * low else (1,)
    every = 1 + (last - first) // 8
    marks = [float(f"{f}e{power}") for power in range(first, last + 1, every) for f in factors]
    return [m for m in marks if low <= m <= high]


def similarity_map(evaluation: Values) -> Heat | None:
    """CKA of the merged model with every source by layer; None without test images."""
    found = evaluation["similarity"]
    layers = list(dict.fromkeys(layer for own in found.values() for layer in own))
    if not layers:
        return None
    rows = []
    for task in (name for name in evaluation["tasks"] if name in found):
        cells = []
        for layer in layers:
            own = found[task].get(layer, {})
            cka = own.get("cka")
            metrics = ", ".join(f"{n} {summary.fixed(own.get(k))}" for n, k in SIMILARITIES.items())
            cells.append(Cell(_strength(cka), summary.fixed(cka, 2), f"{task}, {layer}: {metrics}"))
        rows.append((task, cells))
    return Heat(short(layers), rows, layers)


SIMILARITIES = {"CKA": "cka", "cosine": "cosine", "relative error": "error"}


def short(names: Sequence[str]) -> list[str]:
    """Names of layers without the common prefix `blocks.`.

    >>> short(["blocks.0", "blocks.1", "norm"]), short(["act0", "act1"])
    (['0', '1', 'norm'], ['act0', 'act1'])
    """
    return [name.removeprefix("blocks.") if name.startswith("blocks.") else name for name in names]


def confusion_maps(evaluation: Values) -> list[tuple[str, Heat]]:
    """Predicted tasks of merged model and ensemble, per protocol."""
    found = []
    for protocol in ("softmax", "logits"):
        for name in ("merged", "ensemble"):
            shares = summary.chosen_tasks(evaluation, name, protocol)
            if shares:
                found.append(
                    (
                        f"{name}, {summary.PROTOCOLS[protocol]}",
                        _confusion(shares, summary.counted_word(evaluation, "images")),
                    )
                )
    return found


def _confusion(shares: Mapping[str, Mapping[str, tuple[float, int]]], word: str) -> Heat:
    columns = list(next(iter(shares.values())))
    rows = [
        (
            task,
            [
                Cell(share, f"{100 * share:.0f}", f"{count:,} {word} of {task} predicted as a label of {other}")
                for other, (share, count) in own.items()
            ],
        )
        for task, own in shares.items()
    ]
    return Heat(columns, rows, columns)


def _strength(value: float | None) -> float | None:
    return min(1.0, max(0.0, value)) if value is not None and math.isfinite(value) else None
