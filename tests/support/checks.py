"""Sources as files, and requests to check them."""

from __future__ import annotations

from pathlib import Path

from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.request import Request, request
from tests.evaluation.test_certificates import written

Entries = list[dict[str, str]]


def check_request(entries: Entries, method: str = "average") -> Request:
    return request(entries, method, None, Hardware(device="cpu"), 0, overwrite=False)


def write_entries(folder: Path, *sources: Source) -> Entries:
    return [written(folder, source) for source in sources]
