from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from tests.support.bad_inputs import CASES, KD, VITS, Case, write_sources
from tests.support.bad_inputs.place import working_copy

Listing = dict[str, str]


@pytest.fixture(scope="module")
def _valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    write_sources(folder)
    return folder


@pytest.fixture
def place(_valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the valid sources, as the working folder."""
    return working_copy(_valid, tmp_path, monkeypatch)


def listing(folder: Path) -> Listing:
    """Every path below `folder` with the hash of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "-"
        for path in sorted(folder.rglob("*"))
    }


def expected(case: Case, folder: Path) -> re.Pattern[str]:
    """A pattern of the whole message; {library} matches any text on one line."""
    message = case.message.replace("{folder}", str(folder)).replace("{x}", "x" * 300)
    return re.compile(".+".join(map(re.escape, message.split("{library}"))))


def check(case: Case, folder: Path, before: Listing, code: int, out: str, err: str) -> None:
    assert code == case.code, err
    assert "Traceback" not in err
    after = listing(folder)
    if case.code:
        head, _, message = err.partition("fsmerge: error: ")
        assert all(re.fullmatch(r"[a-z ]+: \d+/\d+.*", line) for line in head.splitlines())
        assert expected(case, folder).fullmatch(message.removesuffix("\n")), message
        assert out == ""
        assert after == before
    else:
        notes = [line.removeprefix("note: ") for line in out.splitlines() if line.startswith("note: ")]
        assert expected(case, folder).fullmatch("\n".join(notes)), notes
        assert {name: digest for name, digest in after.items() if name.split("/")[0] != "out"} == before
        assert "out/evaluation.json" in after


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if c.quick else [pytest.mark.full]) for c in CASES]
)
def test_a_bad_input_gets_one_message_and_changes_no_file(
    case: Case, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        case.prepare(place, patch)
        before = listing(place)
        capsys.readouterr()
        code = main(shlex.split(case.call))
        out, err = capsys.readouterr()
    check(case, place, before, code, out, err)


SOON = ("marge", "an unknown method", "header of exabytes", "a pickle that runs code")
"""Cases of the installed command in `make test`; the others are in `make test-slow`."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=c.name, marks=pytest.mark.full if c.name in SOON else pytest.mark.slow)
        for c in CASES
        if c.installed
    ],
)
def test_the_installed_command_prints_the_same_message(
    case: Case, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.prepare(place, monkeypatch)
    before = listing(place)
    command = Path(sys.executable).with_name("fsmerge")
    start = [str(command)] if command.is_file() else [sys.executable, "-m", "fsmerge_cli"]
    ran = subprocess.run([*start, *shlex.split(case.call)], capture_output=True, text=True)
    check(case, place, before, ran.returncode, ran.stdout, ran.stderr)


def test_there_are_at_least_80_cases_with_unique_names() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 80
    assert len([case for case in CASES if case.installed]) >= 10
    assert all(case.message for case in CASES)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("path", ["a/model.safetensors", "a/config.json", "images/a/0.png"])
def test_a_file_without_read_permission_is_reported(
    path: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / path).chmod(0)
    assert main(shlex.split(KD)) == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.full
def test_the_valid_sources_can_be_merged(place: Path) -> None:
    assert main(shlex.split(KD)) == 0
    assert main(shlex.split(VITS.replace("output.dir=out", "output.dir=vits"))) == 0
