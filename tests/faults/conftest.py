"""A working folder for the tests of lost files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.losses import fresh, write_place


@pytest.fixture(scope="session")
def _valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    write_place(folder)
    return folder


@pytest.fixture
def place(_valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources a and b, images/, labels.txt, and the finished runs out/ and other/."""
    return fresh(_valid, tmp_path, monkeypatch)
