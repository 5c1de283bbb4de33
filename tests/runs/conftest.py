"""Fixtures: sources as files, and a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsmerge_cli import merge
from tests.support.checks import Entries, write_entries
from tests.support.sources import mlp_source
from tests.support.vits import vit_source


@pytest.fixture
def vits(tmp_path: Path) -> Entries:
    return write_entries(tmp_path, *(vit_source("class token", seed) for seed in (1, 2)))


@pytest.fixture
def mlps(tmp_path: Path) -> Entries:
    return write_entries(tmp_path, *(mlp_source(name, [40, 40], seed) for seed, name in enumerate("ab")))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the digits."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    merge("digits_mlp_pair", method={"name": "kd", "steps": 20, "lr": 0.01}, hardware="cpu", output=folder)
    return folder
