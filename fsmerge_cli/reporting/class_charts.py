"""The report's sections on classes, reliability and the cost of serving, from the content of evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsmerge_cli.reporting.charts import Cell, Heat, Line
from fsmerge_cli.reporting.summary import NONE, Table, counted_word, fixed, number, own_word, per_cent

Values = Mapping[str, Any]

MOST, LISTED = 30, 20
"""Classes up to which all are listed, and of more the number of those that are."""

TITLED, LONGEST = 12, 3
"""Most columns of a matrix with names as titles, and most characters of such a title."""


@dataclass(frozen=True)
class ClassTable:
    """Accuracy by class of one task. note: which classes are listed; empty where all are."""

    task: str
    note: str
    table: Table


@dataclass(frozen=True)
class Reliability:
    """Accuracy over confidence of one task, in per cent of the plot, y downwards."""

    task: str
    lines: Sequence[Line]


def class_tables(evaluation: Values) -> list[ClassTable]:
    """Accuracy by class with the source's; of many classes, those that lost most."""
    word = counted_word(evaluation, "images")
    return [_class_table(task, own, word) for task, own in evaluation["classes"].items()]


def _class_table(task: str, own: Values, word: str) -> ClassTable:
    source = own["source_correct"]
    rows: list[tuple[str, int, float, float | None]] = []
    for i, (label, images, correct) in enumerate(zip(own["labels"], own["images"], own["correct"])):
        if images:
            theirs = None if source is None else source[i] / images
            rows.append((label, images, correct / images, theirs))
    note = ""
    if len(rows) > MOST:
        lost = "that lost most" if source is not None else "with the lowest accuracy"
        note = f"{LISTED} of {len(rows):,} classes, those {lost}"
        rows = sorted(rows, key=lambda row: row[2] - (row[3] or 0.0))[:LISTED]
    cells = [
        [
            label,
            f"{images:,}",
            per_cent(share),
            per_cent(theirs),
            _points(None if theirs is None else share - theirs),
        ]
        for label, images, share, theirs in rows
    ]
    columns = ["class", word, "merged", "source", "change"]
    if source is None:
        cells, columns = [row[:3] for row in cells], ["class", word, "accuracy"]
    return ClassTable(task, note, Table(columns, cells))


def _points(change: float | None) -> str:
    return NONE if change is None else f"{100 * change:+.1f}" if round(1000 * change) else "0.0"


def confusions(evaluation: Values) -> list[tuple[str, Heat]]:
    """Confusion matrices of the merged model: of every task, and joint where the task is not given."""
    word = counted_word(evaluation, "images")
    found = [
        (task, _matrix(own["labels"], own["confusion"], word))
        for task, own in evaluation["classes"].items()
        if own["confusion"] is not None
    ]
    joint = evaluation["joint_confusion"]
    if joint:
        names = [f"{own['task']}: {own['label']}" for own in joint["classes"]]
        found.append(("Joint, the task is not given (as in classifier/)", _matrix(names, joint["counts"], word)))
    return found


def _matrix(names: Sequence[str], counts: Sequence[Sequence[int]], word: str) -> Heat:
    rows = []
    for name, own in zip(names, counts):
        total = sum(own)
        cells = [
            Cell(
                n / total if total else None,
                f"{n:,}" if n else "",
                f"{n:,} of {total:,} {word} of {name}: {other}",
            )
            for other, n in zip(names, own)
        ]
        rows.append((name, cells))
    return Heat(names, rows, names)


def numbered(heat: Heat) -> bool:
    """Whether the columns of a matrix have numbers as titles: their names would be cut."""
    return len(heat.columns) > TITLED or max(map(len, heat.columns)) > LONGEST


def reliabilities(evaluation: Values) -> list[Reliability]:
    """Accuracy over confidence of the merged model and of the source, by task."""
    found = []
    for task, own in evaluation["classes"].items():
        lines = [_curve("merged", own["reliability"])]
        if own["source_reliability"] is not None:
            lines.insert(0, _curve("source", own["source_reliability"]))
        found.append(Reliability(task, lines))
    return found


def _curve(kind: str, bins: Sequence[Mapping[str, float]]) -> Line:
    return Line(kind, [(100 * own["confidence"], 100 - 100 * own["accuracy"]) for own in bins])


def serving(evaluation: Values) -> Table | None:
    """What one model instead of one per task saves, as measured in the run; None where it was not."""
    own = evaluation["cost"]["serving"]
    if own is None:
        return None
    k = len(evaluation["tasks"])
    sizes, times = (own["sources_bytes"], own["merged_bytes"]), (own["sources_ms"], own["merged_ms"])
    cells = [
        ["size of the weights", *map(_size, sizes), f"{fixed(sizes[0] / sizes[1], 1)} x smaller"],
        [own_word(evaluation, "milliseconds per image"), *map(number, times), _speed(times[0] / times[1])],
    ]
    return Table(["", f"{k} sources", "merged model", ""], cells)


def _size(size: int) -> str:
    """As kB, MB or GB.

    >>> _size(1234), _size(12_345_678), _size(2_500_000_000)
    ('1.23 kB', '12.3 MB', '2.5 GB')
    """
    unit, factor = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6) if size >= 1e6 else ("kB", 1e3)
    return f"{size / factor:.3g} {unit}"


def _speed(ratio: float) -> str:
    return f"{fixed(ratio, 1)} x faster" if ratio >= 1 else f"{fixed(1 / ratio, 1)} x slower"
