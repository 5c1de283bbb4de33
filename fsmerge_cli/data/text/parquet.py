"""Tables in Parquet files, read by pyarrow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import DataError, first_line
from fsmerge_cli.common.shown import shown


def parquet_rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Number (from 1) and cells by column of every row; class indices of `datasets` as names. Raises DataError."""
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(
            f"{shown(path)}: Parquet files need the package pyarrow, which is not installed: pip install pyarrow"
        ) from None
    try:
        table = pyarrow.parquet.read_table(path, partitioning=None)
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except Exception as error:  # of many types
        raise DataError(f"{shown(path)} cannot be read ({first_line(error)}). Repair the file.") from None
    for name, names in _class_names(table.schema.metadata or {}).items():
        columns[name] = named_classes(columns[name], names)
    return [(number, dict(zip(columns, row))) for number, row in enumerate(zip(*columns.values()), 1)]


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """The names of the classes by column, where `datasets` has written the file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: own["names"] for name, own in features.items() if own.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def named_classes(indices: Sequence[Any], names: Sequence[str]) -> list[str | None]:
    """The name of every class index; None for none (-1)."""
    return [names[i] if isinstance(i, int) and 0 <= i < len(names) else None for i in indices]
