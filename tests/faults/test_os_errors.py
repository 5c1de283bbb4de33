"""Errors of the system, reading and writing: one line with the path and the reason, and nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from fsmerge_cli.cli import main
from fsmerge_cli.common.locking import locked
from tests.support.bad_inputs import write_sources

PAIR = ["models.sources=[{name: a, checkpoint: a}, {name: b, checkpoint: b}]", "method=average", "--quiet"]
MERGE = ["merge", *PAIR, "output.dir=out"]
KD = "merge method=kd method.steps=1 data=folder data.root=images --quiet output.dir=out".split()  # noqa: SIM905
KD.append(PAIR[0])
CODES = ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EMFILE", "ESTALE"]


def system(name: str) -> OSError:
    code = getattr(errno, name)
    return OSError(code, os.strerror(code))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.full
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("owner", "function"), [(os, "fsync"), (os, "mkdir"), (os, "rename"), (pathlib.Path, "write_text")]
)
def test_an_error_of_writing(
    owner: Any,
    function: str,
    code: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise system(code)

    before = names(place)
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, fail)
        assert main(MERGE) == 2
    expected = f"cannot write {place}/out: {os.strerror(getattr(errno, code))}. Choose another output.dir=..."
    assert capsys.readouterr().err == f"fsmerge: error: {expected}\n"
    assert names(place) == before


LOCKS = ["ENOLCK", "EIO", "ENOSPC", "EROFS", "ENOTSUP", "EINTR", "ESTALE", "ETIMEDOUT", "EACCES", "EPERM"]


@pytest.mark.full
@pytest.mark.parametrize("code", LOCKS)
def test_only_a_held_lock_is_called_so(
    code: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise system(code)

    before = names(place)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", fail)
        assert main(MERGE) == 2
    reason = os.strerror(getattr(errno, code))
    denied = code in ("EACCES", "EPERM")
    expected = "cannot write out: permission denied" if denied else f"cannot write {place}/out: {reason}"
    assert capsys.readouterr().err == f"fsmerge: error: {expected}. Choose another output.dir=...\n"
    assert names(place) == before


def test_a_folder_that_takes_no_files_is_not_called_busy(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MERGE[:-1], "output.dir=/proc/x"]) == 2
    err = capsys.readouterr().err
    assert (
        err == "fsmerge: error: cannot write /proc/x: No such file or directory. Choose another output.dir=...\n"
    )


@pytest.mark.full
def test_a_held_lock_is_called_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = "import fcntl; f = open('.out.lock', 'w'); fcntl.flock(f, 2); print(flush=True); input()"
    start = [sys.executable, "-c", holder]
    with subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert main(MERGE) == 2
        with pytest.raises(Timeout), locked(place / ".out.lock", wait=False):
            pytest.fail("the lock is held")
        process.communicate(b"\n")
    expected = f"another run is writing {place}/out. Wait for it, or choose another output.dir=..."
    assert capsys.readouterr().err == f"fsmerge: error: {expected}\n"
    assert main(MERGE) == 0


OUTPUTS = [
    ("/dev/null", "/dev/null is a file, not a folder. Choose another output.dir=..."),
    (
        "/dev/null/x",
        "cannot make the folder /dev/null/x: a part of the path is a file. Choose another output.dir=...",
    ),
    ("pipe", "{}/pipe is a file, not a folder. Choose another output.dir=..."),
    ("loop/x", "cannot write loop/x: Symlink loop from '{}/loop'. Choose another output.dir=..."),
    ("y" * 300, "cannot write {}/" + "y" * 300 + ": File name too long. Choose another output.dir=..."),
    (
        "~nobody-of-that-name",
        "cannot write ~nobody-of-that-name: Could not determine home directory. Choose another output.dir=...",
    ),
]


@pytest.mark.full
@pytest.mark.parametrize(("output", "message"), OUTPUTS, ids=[output[:30] for output, _ in OUTPUTS])
def test_an_output_that_cannot_be_written(
    output: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    before = names(place)
    assert main([*MERGE[:-1], f"output.dir={output}"]) == 2
    assert capsys.readouterr().err == f"fsmerge: error: {message.replace('{}', str(place))}\n"
    assert names(place) == before


def test_a_path_that_is_too_long(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MERGE[:-1], "output.dir=" + "/".join(["y" * 100] * 60)]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"fsmerge: error: cannot write [^:]+/[/y]+: File name too long\. Choose another output\.dir=\.\.\.\n", err
    )


CHECK = " Check the path, its permissions and its disk."
UNREAD = {
    "a/config.json": (
        "source 'a': a: config.json cannot be read: Permission denied. Repair it, or copy it again."
    ),
    "a/model.safetensors": (
        "source 'a': a: model.safetensors cannot be read: Permission denied. Check its permissions."
    ),
    "a/heads.safetensors": (
        "source 'a': a: heads.safetensors cannot be read: Permission denied. Check its permissions."
    ),
    "a": f"a/model.safetensors: Permission denied.{CHECK}",
    "images": f"images/a: Permission denied.{CHECK}",
    "images/a": f"images/a/test: Permission denied.{CHECK}",
    "images/a/0.png": ("the image images/a/0.png cannot be read (Permission denied). Repair or remove it."),
    "labels.txt": (
        "source 'a': the labels in labels.txt cannot be read (Permission denied). Pass another "
        "file, or a list: models.sources.N.labels=[...]"
    ),
    "conf": f"{{}}/conf/models: Permission denied.{CHECK}",
    "conf/models": f"{{}}/conf/models: Permission denied.{CHECK}",
    "conf/models/x.yaml": (
        "{}/conf/models/x.yaml cannot be read: Permission denied. Repair the file, or pass another one."
    ),
    "done": f"done/evaluation.json: Permission denied.{CHECK}",
    "done/evaluation.json": (
        "done/evaluation.json cannot be read: Permission denied. Run the command again, or leave out this folder."
    ),
    "done/config.yaml": (
        "done/config.yaml cannot be read: Permission denied. Move done/merged into another folder, "
        "and pass data=..."
    ),
    "done/merged": f"done/merged/model.safetensors: Permission denied.{CHECK}",
    "readonly": "cannot write {}/readonly/.out.lock: permission denied. Choose another output.dir=...",
}
"""What may not be read (`readonly`: written) -> the message."""

WITHOUT_RIGHTS = """
import contextlib, ctypes, io, json, os, sys
if os.geteuid() == 0:  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH let root read every file
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    for i in range(3):
        data[i] &= ~0b110
    if libc.capset(header, data):
        sys.exit("cannot drop the rights of root")
from fsmerge_cli.cli import main
found = {}
for path, command in json.loads(sys.argv[1]).items():
    mode = os.stat(path).st_mode
    os.chmod(path, 0o500 if path == "readonly" else 0)
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = main(command)
    os.chmod(path, mode)
    found[path] = [code, err.getvalue()]
print(json.dumps(found))
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="drops the rights of root as Linux does")
def test_permissions(place: Path) -> None:
    assert main([*MERGE[:-1], "output.dir=done"]) == 0
    for folder in ("conf/models", "readonly"):
        Path(folder).mkdir(parents=True)
    Path("conf/models/x.yaml").write_text("sources: []\n")
    Path("labels.txt").write_text("x\ny\nz\n")
    commands = {path: _command(path) for path in UNREAD}
    before = sorted(place.rglob("*"))
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS, json.dumps(commands)], capture_output=True, text=True, timeout=300
    )
    if "cannot drop" in ran.stderr:
        pytest.skip(ran.stderr)
    found = json.loads(ran.stdout.replace(str(place), "{}"))
    assert {path: err.removeprefix("fsmerge: error: ").rstrip() for path, (_, err) in found.items()} == UNREAD
    assert {code for code, _ in found.values()} == {2}
    assert sorted(place.rglob("*")) == before


def _command(path: str) -> list[str]:
    if path.startswith("conf"):
        return ["check", "+models=x", "--config-dir", "conf"]
    if path.startswith("done"):
        return {
            "done/config.yaml": ["evaluate", "done", "data=from_run"],
            "done/merged": ["evaluate", "done", "data=folder", "data.root=images"],
        }.get(path, ["compare", "done"])
    if path == "labels.txt":
        return [*KD, "models.sources.0.labels=labels.txt"]
    return [*KD, "output.dir=readonly/out"] if path == "readonly" else KD
