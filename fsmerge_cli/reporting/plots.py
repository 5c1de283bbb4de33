"""Plots of several runs: accuracy against seconds, and the Pareto front of the tasks' accuracies (matplotlib)."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.shown import shown

SUFFIXES = (".svg", ".png", ".pdf")
OFFSETS = tuple((dx, dy) for dy in (6, -6, 14, -14, 22, -22, 38, -38) for dx in (8, -8, 0) if dx or abs(dy) > 6)
"""Offsets of a label from its marker, in points; the first one without overlap is used."""

WIDE, LINES, CHARACTER = 44, 4, 5.0
"""Characters per line of a label, most lines of it, and the width of a character in points."""

TITLE, DPI = 60, 150
"""Characters per line of the title of an axis; dots per inch, the same for the layout and the file."""

LABELLED = 24
"""With more points than this, only those on the front are labelled."""


@dataclass(frozen=True)
class Point:
    """A run in a plot: its distinguishing settings, method, coordinates, and the ends of its error bars.

    low, high: of y, a 95 % interval, or the mean minus and plus the standard deviation. left, right: of x.
    """

    label: str
    method: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    left: float | None = None
    right: float | None = None


def check_plot(path: Path, key: str = "--plot ") -> None:
    """Raises ConfigError if the suffix is not supported or matplotlib is not installed. key: sets the path."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{key}{path}: give a file that ends in {', '.join(SUFFIXES)}.")
    _pyplot()


def plot_cost(
    path: Path, points: Sequence[Point], title: str, bound: float | None = None, kind: str | None = None
) -> None:
    """Accuracy (a share) against seconds on a logarithmic axis, one colour per method.

    bound: accuracy of the ensemble of all sources, drawn as a line. kind: .svg, .png or .pdf (None: the suffix of
    the path). Raises ConfigError without matplotlib,
    OutputError.
    """
    figure, axes = new_figure(1)
    axis = axes[0]
    axis.set_xscale("log")
    if bound is not None:
        axis.axhline(100 * bound, color="0.6", linestyle="--", linewidth=1, zorder=0)
    _scatter(axis, points)
    _widened(axis, points)
    if bound is not None:
        bottom, top = axis.get_ylim()
        above = 100 * bound < top - 0.06 * (top - bottom)
        position: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        position |= {"xytext": (4, 3 if above else -3), "va": "bottom" if above else "top"}
        axis.annotate("ensemble of the sources", (0, 100 * bound), fontsize=8, color="0.4", **position)
    best = {p.label for p in points if not any(q.x <= p.x and q.y >= p.y and q != p for q in points)}
    axis.set_xlabel("seconds (whole run, logarithmic)")
    axis.set_ylabel(axis_title(f"{title}, %"), parse_math=False)
    _label(figure, axis, [p for p in points if len(points) <= LABELLED or p.label in best])
    save_figure(figure, path, kind)


def plot_front(
    path: Path,
    tasks: Sequence[str],
    runs: Sequence[tuple[str, str, Sequence[float], bool]],
    kind: str | None = None,
) -> None:
    """Accuracies of every pair of tasks: (label, method, one share per task, whether on the front) per run.

    The line joins the runs on the Pareto front. Raises the errors of :func:`plot_cost`.
    """
    pairs = list(itertools.combinations(range(len(tasks)), 2))[:6]
    figure, axes = new_figure(len(pairs))
    for axis, (a, b) in zip(axes, pairs):
        points = [Point(label, method, 100 * own[a], own[b]) for label, method, own, _ in runs]
        front = sorted((p for p, run in zip(points, runs) if run[3]), key=lambda p: (p.x, p.y))
        # A step line: every point below and left of it is dominated.
        axis.step([p.x for p in front], [100 * p.y for p in front], where="pre", color="0.6", zorder=1)
        _scatter(axis, points)
        axis.margins(0.15)
        axis.set_xlabel(axis_title(f"{tasks[a]}: top-1 accuracy, %"), parse_math=False)
        axis.set_ylabel(axis_title(f"{tasks[b]}: top-1 accuracy, %"), parse_math=False)
        _label(figure, axis, front if len(points) > LABELLED else points)
    save_figure(figure, path, kind)


def front(values: Sequence[Sequence[float]]) -> list[bool]:
    """The Pareto front: whether no other entry dominates an entry (at least equal in all values, better in one).

    >>> front([(0.9, 0.1), (0.5, 0.5), (0.4, 0.5), (0.1, 0.9)])
    [True, True, False, True]
    """

    def dominates(other: Sequence[float], own: Sequence[float]) -> bool:
        return all(o >= w for o, w in zip(other, own)) and any(o > w for o, w in zip(other, own))

    return [not any(dominates(other, own) for other in values) for own in values]


def _pyplot() -> Any:
    try:
        from matplotlib import figure, rcParams
    except ImportError:
        raise ConfigError("a plot needs matplotlib. Install it: pip install matplotlib") from None
    # Text stays text (also where the user's settings pass all text to LaTeX), and output is deterministic.
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fsmerge", "text.usetex": False})
    return figure


def new_figure(panels: int) -> tuple[Any, list[Any]]:
    """A figure and its axes, one per panel. Raises ConfigError without matplotlib."""
    pyplot = _pyplot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = pyplot.Figure(figsize=(7 if panels == 1 else 5 * columns, 5 * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # measures texts
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92", zorder=0)
        axis.set_axisbelow(True)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes


def _scatter(axis: Any, points: Sequence[Point]) -> None:
    methods = list(dict.fromkeys(p.method for p in points))
    for i, method in enumerate(methods):
        own = [p for p in points if p.method == method]
        color = f"C{i % 10}"
        for p in own:
            bar = {"color": color, "linewidth": 1, "alpha": 0.6, "zorder": 2}
            if p.low is not None and p.high is not None:
                axis.plot([p.x, p.x], [100 * p.low, 100 * p.high], **bar)
            if p.left is not None and p.right is not None:
                axis.plot([p.left, p.right], [100 * p.y, 100 * p.y], **bar)
        style = {"s": 36, "color": color, "marker": "os^Dv"[i // 10 % 5], "edgecolor": "white", "zorder": 3}
        axis.scatter([p.x for p in own], [100 * p.y for p in own], label=shown(method), **style)
    if len(methods) > 1 and any(p.label != p.method for p in points):
        for text in axis.legend(fontsize=8, loc="lower right", framealpha=0.8).get_texts():
            text.set_parse_math(False)


def _widened(axis: Any, points: Sequence[Point]) -> None:
    """Set axis limits: room for labels at the sides, and at least a factor of ten in seconds."""
    from matplotlib import ticker

    low = min(p.x if p.left is None else p.left for p in points)
    high = max(p.x if p.right is None else p.right for p in points)
    factor = max(1.6, (10 / (high / low)) ** 0.5 if low > 0 else 1.6)
    axis.set_xlim(low / factor, high * factor)
    axis.margins(y=0.12)
    axis.set_ylim(top=min(101.5, axis.get_ylim()[1]))
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def _label(figure: Any, axis: Any, points: Sequence[Point]) -> None:
    """Place labels so that they cover no marker and no other label, if possible."""
    figure.canvas.draw()  # fixes the layout
    markers = [axis.transData.transform((p.x, 100 * p.y)) for p in points]
    taken = [_box(x - 5, y - 5, x + 5, y + 5) for x, y in markers]
    for (x, _), p in zip(markers, points):
        if p.low is not None and p.high is not None:
            ends = [axis.transData.transform((p.x, 100 * end))[1] for end in (p.low, p.high)]
            taken.append(_box(x - 1, ends[0], x + 1, ends[1]))
    taken += [_box_of(text) for text in axis.texts]  # the name of the bound
    if axis.get_legend() is not None:
        taken.append(axis.get_legend().get_window_extent())
    frame = axis.get_window_extent()
    wide = max(8, min(WIDE, int(frame.width / figure.dpi * 72 / CHARACTER) - 2))
    for point in sorted(points, key=lambda p: (-p.y, p.x)):
        best, least = None, float("inf")
        for dx, dy in OFFSETS:
            text = axis.annotate(
                _wrapped(point.label, wide), (point.x, 100 * point.y), xytext=(dx, dy),
                textcoords="offset points", fontsize=8, parse_math=False,
                ha="left" if dx > 0 else "right" if dx < 0 else "center", va="center",
                arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5} if abs(dy) > 14 else None,
            )  # fmt: skip
            text.set_in_layout(False)  # a long label would shrink the plot
            box = _box_of(text)
            cost = sum(_overlap(box, other) for other in taken) + 2 * _outside(box, frame)
            if cost < least:
                best, text, least = text, best, cost
            if text is not None:
                text.remove()
            if least == 0:
                break
        if best is not None:
            _shift_inside(best, _box_of(best), frame, 72 / figure.dpi)
            taken.append(_box_of(best))


def _box_of(annotation: Any) -> Any:
    """The box of the text, without the line to its marker."""
    from matplotlib.text import Text

    annotation.update_positions(annotation.figure.canvas.get_renderer())  # a new one has no position yet
    return Text.get_window_extent(annotation)


def axis_title(text: str) -> str:
    """The title of an axis: at most two lines, so that it is no longer than the axis."""
    return "\n".join(textwrap.wrap(shown(text), TITLE, max_lines=2, placeholder=" ..."))


def _wrapped(label: str, wide: int) -> str:
    """The label in at most LINES lines of at most `wide` characters."""
    return "\n".join(textwrap.wrap(shown(label), wide, max_lines=LINES, placeholder=" ..."))


def _shift_inside(text: Any, box: Any, frame: Any, points_per_dot: float) -> None:
    """Move an annotation by what its box is outside the plot."""
    dx = max(0.0, frame.x0 - box.x0) - max(0.0, box.x1 - frame.x1)
    dy = max(0.0, frame.y0 - box.y0) - max(0.0, box.y1 - frame.y1)
    x, y = text.xyann
    text.xyann = (x + dx * points_per_dot, y + dy * points_per_dot)


def _box(x0: float, y0: float, x1: float, y1: float) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x0, y0, x1, y1)


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))


def _outside(box: Any, frame: Any) -> float:
    return float(box.width * box.height - _overlap(box, frame))


def save_figure(figure: Any, path: Path, kind: str | None) -> None:
    """Write a figure, the same bytes every time; kind: .svg, .png or .pdf (None: the suffix). Raises OSError."""
    kind = (kind or path.suffix)[1:].lower()
    fixed = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    figure.savefig(path, format=kind, dpi=DPI, metadata=fixed)
