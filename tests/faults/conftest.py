"""Working folders: for the tests of lost files, and for those of adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.adapters import adapted, write_base
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


@pytest.fixture(scope="session")
def _adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    write_base(folder / "base")
    adapted(folder / "base", folder / "adapter", target_modules=["qkv", "fc1"], modules_to_save=["head"])
    return folder


@pytest.fixture
def adapted_place(_adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base/ and adapter/, an adapter of PEFT of that base with a head of its own."""
    shutil.copytree(_adapted, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "x")
    return tmp_path / "x"
