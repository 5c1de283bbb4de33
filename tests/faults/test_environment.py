"""Environment variables, standard streams and folders that are broken: one line, or the run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.common.distributed import is_main, process_rank
from fsmerge_cli.common.errors import ConfigError, describe, first_line, reason

PAIR = ["+models=digits_mlp_pair", "method=average", "--quiet"]
UNSET = "torchrun sets these variables; without it, unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."
RANKS = [
    ({"RANK": "x", "WORLD_SIZE": "2"}, f"RANK=x: should be a whole number. {UNSET}"),
    ({"RANK": "", "WORLD_SIZE": ""}, f"RANK=: should be a whole number. {UNSET}"),
    ({"RANK": "1e3", "WORLD_SIZE": "2"}, f"RANK=1e3: should be a whole number. {UNSET}"),
    ({"RANK": "-1", "WORLD_SIZE": "2"}, f"RANK=-1: should be a whole number. {UNSET}"),
    ({"RANK": "²", "WORLD_SIZE": "2"}, f"RANK=²: should be a whole number. {UNSET}"),
    ({"RANK": "9" * 5000, "WORLD_SIZE": "2"}, f"RANK={'9' * 200}...: should be a whole number. {UNSET}"),
    ({"RANK": "0", "WORLD_SIZE": "0"}, f"RANK=0 WORLD_SIZE=0: these are no ranks of processes. {UNSET}"),
    ({"RANK": "5", "WORLD_SIZE": "2"}, f"RANK=5 WORLD_SIZE=2: these are no ranks of processes. {UNSET}"),
    (
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "0"},
        f"RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=0: these are no ranks of processes. {UNSET}",
    ),
    (
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "q"},
        f"LOCAL_RANK=q: should be a whole number. {UNSET}",
    ),
    (
        {"SUBMITIT_EXECUTOR": "nope"},
        "SUBMITIT_EXECUTOR=nope: Could not figure out which environment the job is runnning in. Known "
        "environments: slurm, local, debug. Unset this variable.",
    ),
]


@pytest.mark.parametrize(("variables", "message"), RANKS)
def test_ranks_that_are_none(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "SUBMITIT_EXECUTOR" in variables:
        pytest.importorskip("submitit")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        process_rank()
    assert str(error.value).replace("running", "runnning") == message  # a slip of submitit
    assert is_main()
    assert main(["merge", *PAIR]) == 2
    assert capsys.readouterr().err == f"fsmerge: error: {error.value}\n"
    assert main(["list", "method"]) == 0


START = "Start them with torchrun, which sets these variables, and one port per run."
PLACE = "the processes cannot connect at MASTER_ADDR:MASTER_PORT="
ADDRESSES = [
    ({}, f"MASTER_ADDR is not set, so the processes cannot connect. {START}"),
    ({"MASTER_ADDR": "localhost"}, f"MASTER_PORT is not set, so the processes cannot connect. {START}"),
    ({"MASTER_ADDR": "localhost", "MASTER_PORT": "abc"}, f"{PLACE}localhost:abc (invalid literal"),
    ({"MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, f"{PLACE}localhost:99999 ("),
    ({"MASTER_ADDR": "no-host.invalid", "MASTER_PORT": "29501"}, f"{PLACE}no-host.invalid:29501 ("),
]


@pytest.mark.full
@pytest.mark.parametrize(("variables", "message"), ADDRESSES)
def test_processes_that_cannot_connect(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every process says so itself: rank 1 too, which otherwise leaves errors to rank 0."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    assert main(["merge", *PAIR, "hardware=cpu", "hardware.distributed=true"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fsmerge: error: {message}")
    assert err.endswith(f"{START}\n")
    assert err.count("\n") == 1


WRITE = "cannot write the cache of embedded sources, {}/sources. Choose another folder: FSMERGE_CACHE=FOLDER"
CACHES = [
    ("file", WRITE),
    ("file/below", WRITE),
    ("loop", "FSMERGE_CACHE={} cannot be used (Too many levels of symbolic links). Pass another path."),
    ("/dev/null", WRITE),
    ("/proc/x", WRITE),
    ("x" * 300, "FSMERGE_CACHE=" + "x" * 200 + "... cannot be used (File name too long). Pass another path."),
    (
        "~nobody-of-that-name/x",
        "FSMERGE_CACHE={} cannot be used (Could not determine home directory). Pass another path.",
    ),
]


@pytest.mark.full
@pytest.mark.parametrize(("place", "message"), CACHES, ids=[place[:30] for place, _ in CACHES])
def test_a_cache_that_cannot_be_used(
    place: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    monkeypatch.setenv("FSMERGE_CACHE", place)
    assert main(["merge", *PAIR, "output.dir=out"]) == 2
    assert capsys.readouterr().err in [
        f"fsmerge: error: {text.replace('{}', place)}\n" for text in (message, WRITE)
    ]
    assert not Path("out").exists()


@pytest.mark.full
@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", "9" * 5000, "100000000"])
def test_a_terminal_width_that_is_none(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["check", PAIR[0], "method=average", "--headers-only"]) == 0
    assert "recommended: method=" in capsys.readouterr().out


COMMAND = [sys.executable, "-m", "fsmerge_cli"]
FULL = "fsmerge: error: cannot write to standard output: No space left on device. Send it to a place with room.\n"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `$F` (the command) in bash; the exit code of the first process of a pipe."""
    words = " ".join(COMMAND)
    script = f"F='{words}'; {line}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@pytest.mark.full
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("$F list > /dev/full", 2, "", FULL),
        ("$F merge --help > /dev/full", 2, "", FULL),
        ("$F list method | head -1", 0, "method\n", ""),
        ("$F list >&-", 0, "", ""),
        ("$F list xyz 2> /dev/full", 2, "", ""),
        ("$F list xyz 2>&-", 2, "", ""),
        ("$F list xyz <&- >&- 2>&-", 2, "", ""),
    ],
)
def test_streams_that_are_full_closed_or_not_read(line: str, code: int, out: str, err: str) -> None:
    ran = shell(line)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, out, err)


@pytest.mark.full
@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        ("| head -1", 0),
        pytest.param("2>&1 | head -1", 0, marks=pytest.mark.slow),
        ("> /dev/full", 2),
        pytest.param("2> /dev/full", 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_output_nobody_reads_is_finished(redirection: str, code: int, tmp_path: Path) -> None:
    ran = shell(f"$F merge {PAIR[0]} method=average output.dir={tmp_path / 'out'} {redirection}")
    assert ran.returncode == code, ran
    assert "Traceback" not in ran.stdout + ran.stderr
    assert (tmp_path / "out/evaluation.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.full
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        pytest.param({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}, marks=pytest.mark.slow),
        pytest.param({"OMP_NUM_THREADS": "x"}, marks=pytest.mark.slow),
        {"TERM": "", "COLUMNS": "", "TMPDIR": "/nowhere", "HOME": "/nowhere"},
    ],
)
def test_an_environment_in_which_a_run_works(variables: dict[str, str], tmp_path: Path) -> None:
    ran = shell(f"$F merge {PAIR[0]} method=average output.dir={tmp_path / 'out'}", **variables)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_working_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    ran = shell(f"cd gone; rmdir ../gone; $F check {PAIR[0]}", PYTHONPATH=str(Path(__file__).parents[2]))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.endswith(
        "fsmerge: error: the current folder cannot be used (No such file or directory). Change into another "
        "folder.\n"
    )


LITTLE = (
    "not enough memory. `fsmerge check` estimates what a merge needs. Pass a smaller method.batch_size, "
    "hardware.eval_batch or data.images_per_task."
)
SYSTEM: list[tuple[Exception, str, int]] = [
    (
        OSError(5, "Input/output error", "/x"),
        "/x: Input/output error. Check the path, its permissions and its disk.",
        2,
    ),
    (
        OSError(28, "No space left on device"),
        "No space left on device. Check the disks and the network; FSMERGE_DEBUG=1 shows where this happened.",
        2,
    ),
    (MemoryError("out of memory with one image."), "out of memory with one image.", 1),
    (MemoryError(), LITTLE, 1),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), LITTLE, 1),
    (
        RecursionError("x"),
        "an option or a file has values too deep inside each other; FSMERGE_DEBUG=1 shows where.",
        2,
    ),
    (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "a text is not valid ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte). Use UTF-8; "
        "FSMERGE_DEBUG=1 shows where.",
        2,
    ),
]


@pytest.mark.parametrize(("error", "message", "code"), SYSTEM)
def test_errors_of_the_system_are_one_line(
    error: Exception, message: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FSMERGE_DEBUG", raising=False)
    assert describe(error) == (f"fsmerge: error: {message}\n", code)
    assert describe(ValueError("a bug"))[0].startswith("ValueError: a bug\nfsmerge: this is a bug in fsmerge; ")


def test_messages_of_libraries_are_shown_without_addresses_in_memory() -> None:
    error = OSError("cannot identify image file <_io.BytesIO object at 0x7f71cd0a89a0>")
    assert (reason(error), first_line(error)) == ("cannot identify image file", "cannot identify image file")
    assert reason(ValueError("<object object at 0x7f> and <b>")) == "and <b>"
