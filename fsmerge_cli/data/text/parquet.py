"""Tables in Parquet files, read by pyarrow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import DataError, first_line, reason
from fsmerge_cli.common.foreign_files import require_regular
from fsmerge_cli.common.shown import listed, shown

BATCH = 256
"""Rows that are unpacked at a time: a file of a few kB may stand for many GB."""

MAX_BYTES, MAX_ROWS = 2**30, 20_000_000
"""Most unpacked values that are read."""


def parquet_rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Number (from 1) and cells by column of every row; class indices of `datasets` as names. Raises DataError."""
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(
            f"{shown(path)}: Parquet files need the package pyarrow, which is not installed: pip install pyarrow"
        ) from None
    try:
        require_regular(path)
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if repeated := sorted(name for name, times in Counter(names).items() if times > 1):
            raise DataError(
                f"{shown(path)} has several columns named {listed(repeated)}, and only one of them would be read. "
                "Rename or remove the others."
            )
        columns: dict[str, list[Any]] = {name: [] for name in names}
        size = 0
        for batch in file.iter_batches(BATCH):
            if size > MAX_BYTES or len(columns[names[0]]) + batch.num_rows > MAX_ROWS:
                raise DataError(
                    f"{shown(path)} holds more than {MAX_ROWS:,} rows or {MAX_BYTES // 2**20:,} MB of unpacked "
                    "values, the limit for such a file. Save a part of it."
                )
            for name, values in zip(names, batch.columns):
                found = values.to_pylist()
                columns[name] += found
                size += sum(len(value) if isinstance(value, str | bytes | list) else 8 for value in found)
        metadata = file.schema_arrow.metadata or {}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read ({reason(error)}). Repair the file.") from None
    except Exception as error:  # of many types
        raise DataError(f"{shown(path)} cannot be read ({first_line(error)}). Repair the file.") from None
    for name, own in _class_names(metadata).items():
        if name in columns:
            columns[name] = named_classes(columns[name], own)
    return [(number, dict(zip(columns, row))) for number, row in enumerate(zip(*columns.values()), 1)]


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """The names of the classes by column, where `datasets` has written the file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        inner = {name: own.get("feature") or own for name, own in features.items()}  # of a list: that of its items
        classes = {name: own["names"] for name, own in inner.items() if own.get("_type") == "ClassLabel"}
        return {name: own for name, own in classes.items() if isinstance(own, list) and all_texts(own)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def all_texts(names: Sequence[Any]) -> bool:
    """Whether class names are texts, no two of them equal."""
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def named_classes(indices: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """The name of every class index; None for none (-1). Of lists of them the same inside."""
    return [
        named_classes(i, names)
        if isinstance(i, list | tuple)
        else names[i]
        if isinstance(i, int) and 0 <= i < len(names)
        else None
        for i in indices
    ]
