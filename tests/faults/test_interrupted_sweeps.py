"""A sweep that is stopped or killed at any moment is finished by the same command with resume=true.

Also what crosses processes: the messages of errors and signals, and the end of the process that started a job.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fsmerge_cli.cli import sweep_folder
from fsmerge_cli.common.errors import CertificateError, ConfigError, Interrupted, MismatchError, Stopped
from tests.support.killed import Kill, fsmerge
from tests.support.paths import REPOSITORY

FILES = [".fsmerge-sweep.json", "jobs", "multirun.yaml", "summary.csv", "summary.svg"]
KILLS = [*(Kill("placing", n) for n in range(5)), *(Kill("sweep list", n) for n in range(3))]
"""Before each file of the sweep gets its name, and before each change of the list of these files."""


@pytest.mark.parametrize(
    "kill", [pytest.param(k, marks=pytest.mark.full if k == KILLS[1] else pytest.mark.slow) for k in KILLS]
)
def test_a_sweep_that_is_killed_between_its_own_files(kill: Kill, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "sweep"
    command = ["merge", "--multirun", "+models=digits_mlp_pair", "method=average", "seed=0,1", "--quiet"]
    command += ["data.images_per_task=40", f"output.dir={tmp_path}/out/${{seed}}", f"hydra.sweep.dir={folder}"]
    assert fsmerge(command, log, kill).code == -signal.SIGKILL
    ran = fsmerge([*command, "resume=true"], log)
    assert (ran.code, "error" in ran.err) == (0, False), ran.err
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1"]


def test_files_that_a_killed_sweep_had_begun_are_removed_and_no_others(tmp_path: Path) -> None:
    own = [".summary.csv.0123abcd.tmp", "..fsmerge-sweep.json.0123abcd.tmp", "jobs/.00012.json.0123abcd.tmp"]
    kept = [
        ".summary.csv.mine.tmp",
        ".notes.csv.0123abcd.tmp",
        "jobs/.12.json.0123abcd.tmp",
        "summary.csv.0123abcd.tmp",
    ]
    sweep_folder.start(tmp_path / "sweep", again=False)
    (tmp_path / "sweep/jobs").mkdir()
    for name in (*own, *kept):
        (tmp_path / "sweep" / name).write_text("half")
    (tmp_path / "sweep/.summary.svg.0123abcd.tmp").symlink_to("mine")
    sweep_folder.start(tmp_path / "sweep", again=True)
    left = {path.relative_to(tmp_path / "sweep").as_posix() for path in (tmp_path / "sweep").rglob("*")}
    assert left == {".fsmerge-sweep.json", ".summary.svg.0123abcd.tmp", "jobs", *kept}


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("no"),
        MismatchError(["a", "b"]),
        CertificateError(["a"], "kept"),
        Stopped(signal.SIGTERM),
        Interrupted("step 3 of 20", signal.SIGHUP),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_in_another_process(error: BaseException) -> None:
    error.add_note("the log is x")
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
    assert found.exit_code == error.exit_code  # type: ignore[attr-defined]


JOB = """
import os, pathlib, sys, time
from fsmerge_cli.common.errors import Stopped
from fsmerge_cli.training.interrupts import stop_on_signals, stop_with_parent
parent, idle = os.getppid(), sys.argv[1] == "idle"
try:
    with stop_with_parent(), stop_on_signals():
        print(os.getpid(), flush=True)
        time.sleep(0 if idle else 60)
except Stopped:
    pass
time.sleep(60)
"""
START = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.full
@pytest.mark.parametrize("what", ["idle", "busy"])
def test_a_job_ends_when_the_process_that_started_it_is_gone(what: str) -> None:
    """`kill -9` of a sweep with launcher=joblib: its processes would compute on, and lock their folders."""
    starter = subprocess.Popen(
        [sys.executable, "-c", START, JOB, what],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    job = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    for _ in range(100):
        if not _runs(job):
            break
        time.sleep(0.1)
    else:
        os.kill(job, signal.SIGKILL)
        pytest.fail("the job still runs")
    starter.stdout.close()


def _runs(process: int) -> bool:
    """Whether a process runs; one that has ended may wait to be collected."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
