"""Where a closed form lost accuracy: its figures by stage, from the facts of evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmerge_cli.reporting.summary import NONE, STAGE_FIGURE, Table, fixed, number

Figures = Mapping[tuple[str, int, int], float]
"""By name, place and source (from 1; 0: of all sources)."""


def stages(evaluation: Mapping[str, Any]) -> Table | None:
    """One row per attention, MLP or layer, in the order in which they were solved; None for other methods."""
    facts: Mapping[str, float] = evaluation["facts"]
    found: dict[tuple[str, int, int], float] = {}
    for name, value in facts.items():
        if (match := STAGE_FIGURE.fullmatch(name)) and not match[4]:
            found[match[1], int(match[2] or 0), int(match[3] or 0)] = value
    names = [source["name"] for source in evaluation["provenance"]["sources"]]
    rows = _transformer(found, len(names)) or _layers(found, len(names))
    if not rows:
        return None
    columns = ["stage", *(f"reading {n}" for n in names), "stream", *(f"from {n}" for n in names), "logits kept"]
    cells = [list(row) for row in zip(*rows)]
    kept = [i for i, column in enumerate(cells) if i == 0 or any(cell != NONE for cell in column)]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _transformer(found: Figures, k: int) -> list[list[str]]:
    """Attention and MLP in turns; [] where the figures are not those of such blocks."""
    depth = len({place for name, place, _ in found if name == "heads"})
    if not depth or len({place for name, place, _ in found if name == "stream_error"}) != 2 * depth:
        return []
    rows = []
    for stage in range(2 * depth):
        block, mlp = divmod(stage, 2)
        rows.append(
            [
                f"{block + 1} {'MLP' if mlp else 'attention'}",
                *(number(found.get(("read_error", stage, i + 1)), 2) for i in range(k)),
                number(found.get(("stream_error", stage, 0)), 2),
                *(fixed(found.get(("units" if mlp else "heads", block, i + 1)), 0) for i in range(k)),
                fixed(None if mlp else found.get(("logits_kept", block, 0)), 3),
            ]
        )
    return rows


def _layers(found: Figures, k: int) -> list[list[str]]:
    """The layers of a chain; the first reads the images themselves."""
    depth = len({place for name, place, _ in found if name == "units"})
    return [
        [
            f"layer {layer + 1}",
            *(number(found.get(("read_error", layer - 1, i + 1)), 2) for i in range(k)),
            NONE,
            *(fixed(found.get(("units", layer, i + 1)), 0) for i in range(k)),
            NONE,
        ]
        for layer in range(depth)
    ]
