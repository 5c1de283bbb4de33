"""The curves between two sources: as a table of points, and as a plot of loss and accuracy (matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fsmerge_cli.common.shown import shown
from fsmerge_cli.reporting.plots import axis_title, new_figure, save_figure

NAMES = {
    "none": "without alignment",
    "weights": "after weight matching",
    "activations": "after activation matching",
}

BARRIERS = {
    "loss": ("loss", 1.0, "{:.3f} nats"),
    "error": ("accuracy", 100.0, "{:.1f} % points"),
    "disagreement": ("agreement", 100.0, "{:.1f} % points"),
}
"""Metric -> what it is called, factor, and form of a barrier."""

Rows = Sequence[Mapping[str, Any]]


def curve_tables(rows: Rows) -> list[Table]:
    """One table per line: a row per point, with the columns that were measured."""
    forms: dict[str, tuple[str, Callable[[float], str]]] = {
        "loss": ("loss", lambda value: f"{value:.3f}"),
        "accuracy": ("accuracy, %", lambda value: f"{100 * value:.1f}"),
        "agreement_1": ("agreement with\nsource 1, %", lambda value: f"{100 * value:.1f}"),
        "agreement_2": ("agreement with\nsource 2, %", lambda value: f"{100 * value:.1f}"),
        "feature_error_1": ("feature error\nto source 1", lambda value: f"{value:.3f}"),
        "feature_error_2": ("feature error\nto source 2", lambda value: f"{value:.3f}"),
    }
    columns = [key for key in forms if any(row[key] is not None for row in rows)]
    tables = []
    for alignment, own in _lines(rows).items():
        table = Table(title=NAMES[alignment], title_justify="left")
        table.add_column("alpha", justify="right")
        for key in columns:
            table.add_column(forms[key][0], justify="right")
        for row in own:
            cells = ["-" if row[key] is None else forms[key][1](row[key]) for key in columns]
            table.add_row(f"{row['alpha']:.2f}", *cells)
        tables.append(table)
    return tables


def barrier_lines(content: Mapping[str, Any]) -> list[str]:
    """One sentence per line on its barriers."""
    found = []
    for line in content["lines"]:
        parts = [
            f"{name} {form.format(factor * line['barrier'][metric])}"
            for metric, (name, factor, form) in BARRIERS.items()
            if metric in line["barrier"]
        ]
        if parts:
            found.append(f"barrier {NAMES[line['alignment']]}: {', '.join(parts)}")
    return found


def plot_curves(path: Path, rows: Rows, names: Sequence[str], kind: str | None = None) -> None:
    """Loss and accuracy (else feature error and agreement, one line per source) against alpha.

    names: of both sources. kind: .svg, .png or .pdf (None: the suffix of the path). Raises ConfigError without
    matplotlib, OutputError.
    """
    labelled = any(row["loss"] is not None for row in rows)
    panels: list[tuple[str, float, list[tuple[str, str]]]] = [
        ("loss (cross-entropy, nats)", 1.0, [("loss", "")]),
        ("top-1 accuracy, %", 100.0, [("accuracy", "")]),
    ]
    if not labelled:
        ends = [(f"_{i}", f", to {name}") for i, name in enumerate(names, 1)]
        panels = [
            ("error of the features, relative", 1.0, [(f"feature_error{i}", text) for i, text in ends]),
            ("agreement of the predictions, %", 100.0, [(f"agreement{i}", text) for i, text in ends]),
        ]
    panels = [own for own in panels if any(row[key] is not None for key, _ in own[2] for row in rows)]
    figure, axes = new_figure(len(panels))
    for axis, (title, factor, curves) in zip(axes, panels):
        for color, (alignment, own) in enumerate(_lines(rows).items()):
            for style, (key, text) in zip(("-", "--"), curves):
                points = [(row["alpha"], factor * row[key]) for row in own if row[key] is not None]
                look = {"color": f"C{color}", "linestyle": style, "marker": "o", "markersize": 3}
                axis.plot(*zip(*points), label=shown(NAMES[alignment] + text), **look)
        axis.set_xlabel(axis_title(f"alpha: 0 is {names[0]}, 1 is {names[1]}"), parse_math=False)
        axis.set_ylabel(title)
        for label in axis.legend(fontsize=8, framealpha=0.8).get_texts():
            label.set_parse_math(False)
    save_figure(figure, path, kind)


def _lines(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["alignment"], []).append(row)
    return found
