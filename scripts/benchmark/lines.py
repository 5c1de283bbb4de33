"""Finished runs as lines of a JSON Lines file, and the page that is written from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scripts.benchmark.intervals import Row

NOTES = "## What was expected, and what came\n"
"""Heading of the part of a page that is written by hand."""


def rows(path: Path) -> Sequence[Row]:
    """The finished runs; empty without a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def finished(path: Path, key: Mapping[str, Any]) -> bool:
    """Whether a line has all values of `key`."""
    return any(all(old[k] == v for k, v in key.items()) for old in rows(path))


def add(path: Path, found: Row) -> None:
    """One more line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(found) + "\n")


def flow(value: object) -> str:
    """As a value of the command line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).strip()


def write_above_notes(path: Path, parts: Sequence[str]) -> None:
    """Write a page; what stands from NOTES on stays."""
    old = path.read_text() if path.is_file() else ""
    notes = old[old.index(NOTES) :] if NOTES in old else f"{NOTES}\n"
    path.write_text("\n".join([*parts, notes]))
