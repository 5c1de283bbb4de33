"""A working folder with sources, images and finished runs, in which a command must not lose a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from tests.support.bad_inputs.case import write_sources

SOURCES = "+models.sources=[{name:a,checkpoint:a},{name:b,checkpoint:b}]"
MERGE = ("merge", SOURCES, "method=average")
OUT = (*MERGE, "output.dir=out")
AGAIN = (*OUT, "output.overwrite=true")


Prepare = Callable[[Path], object]


@dataclass(frozen=True)
class Loss:
    """A command that must be refused, with its whole message; {folder} in both is the working folder."""

    name: str
    prepare: Prepare
    call: tuple[str, ...]
    message: str


def write_place(folder: Path) -> None:
    """Sources a, b and images/ as for bad inputs, a file of labels, and the finished runs out/ and other/."""
    write_sources(folder)
    (folder / "labels.txt").write_text("x\ny\nz\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in ("out", "other"):
            assert main([*MERGE, f"output.dir={name}"]) == 0
    finally:
        os.chdir(before)


def fresh(valid: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a prepared place, as the working folder."""
    shutil.copytree(valid, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return folder


def everything(folder: Path) -> dict[str, object]:
    """Every path below a folder: the target of a link, the bytes of a file, None for anything else."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        own = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = own
    return found


def check_refused(case: Loss, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prepare the case and run its command: one message, exit code 2, and nothing is changed."""
    case.prepare(folder)
    before = everything(folder)
    capsys.readouterr()
    code = main([part.replace("{folder}", str(folder)) for part in case.call])
    err = capsys.readouterr().err
    assert err == "fsmerge: error: " + case.message.replace("{folder}", str(folder)) + "\n"
    assert code == 2
    assert everything(folder) == before, case.name


def nothing(folder: Path) -> None:
    """No preparation."""


def put(path: str, text: str = "mine") -> Prepare:
    """Writes a file, and the folders above it."""

    def prepare(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)

    return prepare


def link(path: str, target: str) -> Prepare:
    """Makes a link; the target is relative to the working folder."""

    def prepare(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(folder / target)

    return prepare


def both(*steps: Prepare) -> Prepare:
    """Several preparations, in their order."""

    def prepare(folder: Path) -> None:
        for step in steps:
            step(folder)

    return prepare
