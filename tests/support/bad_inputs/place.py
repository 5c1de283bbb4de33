"""The working folder of a bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def working_copy(valid: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the valid sources, as the working folder of a command without hub, colours and debugging."""
    shutil.copytree(valid, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    for name in ("FSMERGE_DEBUG", "HYDRA_FULL_ERROR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return folder
