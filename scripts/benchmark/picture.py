"""The benchmark's plot: per cent of the sources' accuracy against seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark.intervals import METHODS, Cell, Row, relative, relative_interval

MARKERS = dict(zip(METHODS, "ovs^*hXDP", strict=True))
VARIANT = {"color": "0.5", "marker": "x", "label": "a variant (see the tables)"}


def picture(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], shown: Sequence[Cell], folder: Path) -> None:
    """Write quality.svg with one panel per cell of `shown`; a method has the same marker in all panels."""
    if not shown:
        return
    plt = _pyplot()
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    size = (4.2 * columns, 3.0 * lines + 0.8)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharex=True, layout="constrained")
    legend: dict[str, Any] = {}
    for axis, cell in zip(axes.flat, shown):
        for method, found in cells[cell].items():
            style = _style(method)
            legend.setdefault(style["label"], _point(axis, found, style))
        axis.set_xscale("log")
        axis.set_ylim(0, 106)
        axis.set_title(f"{cell[0]}, {cell[1]}", fontsize=9)
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    figure.supxlabel("seconds of the fit, on the device listed in the tables", fontsize=10)
    figure.supylabel("% of the sources", fontsize=10)
    names = [name for name in (*METHODS, VARIANT["label"]) if name in legend]
    figure.legend([legend[name] for name in names], names, loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(folder / "quality.svg", metadata={"Date": None})
    plt.close(figure)


SUMMARY: Sequence[Cell] = (("lower_hebrew", "50"), ("armenian_symbols", "50"))
"""The cells whose mean is shown in summary.svg."""


def summary(cells: Mapping[Cell, Mapping[str, Sequence[Row]]], folder: Path) -> None:
    """Write summary.svg: per cent of the sources' accuracy against seconds, mean of the pairs of SUMMARY."""
    if any(cell not in cells for cell in SUMMARY):
        return
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for method in METHODS:
        found = [cells[cell].get(method) for cell in SUMMARY]
        if not all(found):
            continue
        rows = [row for own in found for row in own or ()]
        seconds = statistics.mean(statistics.median(row["seconds"] for row in own) for own in found if own)
        value = statistics.mean(relative(own) for own in found if own)
        devices = {row["device"].removeprefix("NVIDIA ") for row in rows} - {"one CPU thread"}
        name = f"{method} ({', '.join(sorted(devices))})" if devices else method
        style = {**_style(method), "label": name}
        axis.plot(max(seconds, 0.1), value, linestyle="", markersize=8, **style)
    axis.set_xscale("log")
    axis.set_ylim(0, 104)
    axis.set_xlabel("seconds of the fit, on one CPU thread where nothing else is said")
    axis.set_ylabel("% of the sources' accuracy")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(folder / "summary.svg", metadata={"Date": None})
    plt.close(figure)


def _pyplot() -> Any:
    """Matplotlib with a drawing surface in memory; the same rows give the same file."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "quality", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    return plt


def _style(method: str) -> dict[str, str]:
    """Colour, marker and name in the legend."""
    if method not in METHODS:
        return VARIANT
    return {"color": f"C{METHODS.index(method)}", "marker": MARKERS[method], "label": method}


def _point(axis: Any, found: Sequence[Row], style: Mapping[str, str]) -> Any:
    """One method's marker with its interval; hollow, since markers often overlap."""
    low, high = relative_interval(found)
    value, seconds = relative(found), statistics.median(row["seconds"] for row in found)
    around = [[max(0, value - low)], [max(0, high - value)]]
    return axis.errorbar(seconds, value, around, linestyle="", markerfacecolor="none", **style)
