"""The fixtures of the command-line tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fsmerge_cli import check
from fsmerge_cli.cli import main
from tests.support.command import Command, Ran


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small networks are slower on more threads
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fsmerge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FSMERGE_DEBUG", "HYDRA_FULL_ERROR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: str) -> Ran:
        capsys.readouterr()
        code = main(list(argv))
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def _trained(_one_thread: None) -> None:
    check("digits_mlp_pair")


@pytest.fixture
def refused(fsmerge: Command, tmp_path: Path) -> Callable[..., str]:
    def run(*argv: str, code: int = 2) -> str:
        ran = fsmerge(*argv)
        assert (ran.code, ran.out) == (code, "")
        assert list(tmp_path.iterdir()) == []
        return ran.err

    return run
