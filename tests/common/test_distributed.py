from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.cli.sweep import SweepSummary
from fsmerge_cli.common.distributed import World, outcome, place
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import silent
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.kd import StudentNetwork
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.loop import train
from fsmerge_cli.training.objective import Batch, LossWeights, objective
from fsmerge_cli.training.state import Schedule
from fsmerge_cli.training.teachers import capture
from tests.support import two_processes
from tests.support.paths import REPOSITORY
from tests.support.vits import VARIANTS, shared_out, vit_source

TOLERANCE = 1e-5
"""Of weights and losses, relative and absolute: sums in another order, some steps later (2e-6 were seen), and Muon
enlarges small singular values, with what rounding made of them."""
KEY_BIASES = 1e-4
"""Of the biases of attention's keys: their gradient is zero, and Adam makes whole steps of its rounding."""

PAIR = ["merge", "+models=digits_mlp_pair", "method.steps=20", "data.images_per_task=40"]
TWO = ["hardware=multi_gpu", "hardware.device=cpu", "hardware.precision=fp32", "hardware.workers=0"]
CPU = torch.device("cpu")
Make = Callable[..., Problem]
Set = Callable[..., None]

ALONE = (
    "hardware.distributed=true: this process was started alone. Start N of them with\n"
    "  torchrun --nproc-per-node=N -m fsmerge_cli merge ... hardware=multi_gpu\n"
    "or let a cluster start them: fsmerge merge --multirun ... hardware=slurm"
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Set:
    def put(rank: int, size: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))

    return put


# Without a second process


@pytest.mark.parametrize(("rows", "size"), [(0, 2), (1, 3), (7, 2), (8, 4), (9, 4)])
def test_shares_take_every_row_once_and_are_equal_to_one(rows: int, size: int) -> None:
    shares = [World(rank, size).share(torch.arange(rows)) for rank in range(size)]
    assert sorted(torch.cat(shares).tolist()) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def students(problem: Problem) -> list[Student]:
    weights = problem.weights()
    supernet = SuperNet(problem.plan, start_maps(problem.plan, weights, "low_rank", "average", 2), weights)
    return [supernet, StudentNetwork(problem, "first", "linear")]


@pytest.mark.parametrize("variant", shared_out(VARIANTS))
def test_every_parameter_has_a_gradient_where_a_batch_lacks_a_task(variant: str, make_problem: Make) -> None:
    problem = make_problem([vit_source(variant, 1), vit_source(variant, 2)])
    targets = capture(problem.sources, problem.images, "own", Hardware(features="memory"), CPU, silent)
    rows = torch.tensor([0, 1])
    batch = Batch.of(problem.images.images, targets, rows)
    assert batch.counts().tolist() == [[2, 1], [1, 2]]
    for student in students(problem):
        objective(student, batch, targets).backward()
        assert [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_shares_of_a_batch_add_up_to_its_objective_and_gradient(make_problem: Make) -> None:
    problem = make_problem()
    targets = capture(problem.sources, problem.images, "own", Hardware(features="memory"), CPU, silent)
    rows = torch.tensor([0, 13, 3, 20, 4, 23])  # of two shares, one has the first task's images alone
    batch = Batch.of(problem.images.images.double(), targets, rows)
    for student in (s.double() for s in students(problem)[1:]):
        whole = objective(student, batch, targets)
        gradients = torch.autograd.grad(whole, list(student.parameters()))
        shares = [World(rank, 2).share(batch.positions()) for rank in (0, 1)]
        counts = batch.counts()
        parts = [objective(student, batch, targets, LossWeights(), own, counts) for own in shares]
        torch.testing.assert_close(sum(parts), whole)
        added = torch.autograd.grad(sum(parts), list(student.parameters()))
        for one, both in zip(gradients, added):
            torch.testing.assert_close(both, one)


def test_fewer_images_than_processes_are_refused(make_problem: Make) -> None:
    problem = make_problem(per_task=12)
    student = students(problem)[1]
    targets = capture(problem.sources, problem.images, "own", Hardware(features="memory"), CPU, silent)
    with pytest.raises(ConfigError) as error:
        train(
            student, problem.images, targets, Schedule(1, 3, 1e-3, 0, 1), Hardware(), CPU, 0, silent, World(1, 4)
        )
    assert str(error.value) == (
        "4 processes share every batch, but a batch has 3 images. Start fewer processes, or raise "
        "method.batch_size and data.images_per_task."
    )


def test_a_process_started_alone_is_told_how_to_start_several(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert place() is None
    assert main([*PAIR, *TWO]) == 2
    assert capsys.readouterr() == ("", f"fsmerge: error: {ALONE}\n")
    for hardware in ("multi_gpu", "slurm"):
        with pytest.raises(ConfigError) as error:
            merge("digits_mlp_pair", hardware=hardware)
        assert str(error.value) == ALONE
    assert list(tmp_path.iterdir()) == []


def test_several_processes_that_would_do_the_same_are_refused_once(
    capsys: pytest.CaptureFixture[str], started: Set
) -> None:
    message = (
        "fsmerge: error: 4 processes were started, but each of them would do the same. Pass hardware=multi_gpu "
        "(or hardware.distributed=true) to share the work, or start one process.\n"
    )
    for rank, told in ((0, (2, message)), (3, (0, ""))):
        started(rank, 4)
        assert (main([*PAIR, "hardware=cpu"]), capsys.readouterr().err) == told


def test_a_sweep_under_torchrun_is_refused_once(capsys: pytest.CaptureFixture[str], started: Set) -> None:
    message = (
        "fsmerge: error: --multirun under torchrun: 2 processes would each start every job. Start one run per "
        "torchrun, or let a cluster start the processes: fsmerge merge --multirun ... hardware=slurm\n"
    )
    for rank, told in ((0, (2, message)), (1, (0, ""))):
        started(rank, 2)
        assert (main([*PAIR, *TWO, "--multirun", "seed=0,1"]), capsys.readouterr().err) == told


def test_other_processes_leave_errors_of_all_to_the_first_and_tell_their_own(started: Set) -> None:
    started(1, 2)
    assert outcome(ConfigError("no")) == ("", 0)
    text, code = outcome(RuntimeError("out of memory"))
    assert (text.splitlines()[0], code) == ("RuntimeError: out of memory", 1)
    started(0, 2)
    assert outcome(ConfigError("no")) == ("fsmerge: error: no\n", 2)


@pytest.mark.parametrize(
    ("device", "devices", "message"),
    [
        (
            "cuda:1",
            2,
            "hardware.device=cuda:1: 2 processes cannot share one device. Pass hardware.device=cuda; each takes "
            "its own.",
        ),
        (
            "cuda",
            1,
            "2 processes were started on a machine with 1 CUDA devices. Start one per device: "
            "torchrun --nproc-per-node=gpu ...",
        ),
    ],
)
def test_every_process_takes_its_own_device(
    device: str, devices: int, message: str, started: Set, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(1, 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    with pytest.raises(ConfigError) as error:
        Hardware(device=device, distributed=True).resolve()
    assert str(error.value) == message
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Hardware(device="auto", distributed=True).resolve() == torch.device("cuda", 1)


def test_without_the_plugin_slurm_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["merge", "--multirun", *PAIR[1:], "hydra/launcher=submitit_nowhere"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: hydra/launcher=submitit_nowhere (of hardware=slurm) needs Hydra's submitit launcher, "
        "which is not installed. Install it: pip install 'fsmerge[slurm]'\n"
    )


def test_where_there_is_no_slurm_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["merge", "--multirun", *PAIR[1:], "hardware=slurm"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: hardware=slurm: there is no Slurm here (no `srun`). Run the command where jobs are "
        "submitted, or pass hardware=multi_gpu under torchrun.\n"
    )


# Two processes


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, one file each."""
    folder = tmp_path_factory.mktemp("both")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_processes.work, (port, str(folder)), nprocs=2)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("name", two_processes.TRAINED)
def test_two_processes_give_the_weights_of_one(name: str, both: Path) -> None:
    first, second = (torch.load(both / f"{rank}.pt")[name] for rank in (0, 1))
    expected = two_processes.fitted(name, World())
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(first[key], second[key])
        if key == "chosen":  # the last steps are nearly equal, so one process may choose another of them
            continue
        near = KEY_BIASES if name == "vit kd" and key.endswith("qkv.bias") else TOLERANCE
        torch.testing.assert_close(first[key], value, rtol=near, atol=near, equal_nan=True)


@pytest.mark.full
def test_an_error_of_one_process_stops_all_of_them(both: Path) -> None:
    told = [(both / f"{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert told == [
        ["ConfigError: no", "RuntimeError: boom", "UserError: no", "FsmergeError: process 1 failed: boom"],
        ["UserError: no", "FsmergeError: process 0 failed: boom", "ConfigError: no", "RuntimeError: boom"],
    ]


@pytest.mark.full
def test_an_output_folder_that_is_not_free_stops_all_and_is_said_once(both: Path) -> None:
    told = [(both / f"{rank}.err").read_text() for rank in (0, 1)]
    assert told == [
        f"2 fsmerge: error: {both}/0.pt is a file, not a folder. Choose another output.dir=...\n",
        "0 ",
    ]


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONWARNINGS": "error::FutureWarning:fsmerge_cli", "COLUMNS": "200"}
    return subprocess.run(
        [*command, "-m", "fsmerge_cli", *arguments],
        cwd=folder,
        env={**environment, "FSMERGE_CACHE": str(folder / "cache"), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.full
def test_torchrun_shares_one_folder_one_voice_and_one_training_of_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [f"++models.sources.{i}.recipe.steps=30" for i in (0, 1)]
    ran = torchrun(tmp_path, *PAIR, *recipes, *TWO, "output.dir=two")
    assert ran.returncode == 0, ran.stderr
    said = [line.partition(":")[0] for line in ran.stderr.splitlines()]
    phases = ["train source low", "train source high", "look at test images", "read images"]
    phases += ["statistics", "match units", "capture", "train", "train"]
    rows = [f"evaluate {row}" for row in ("sources", "average", "merged")]
    assert said == [*phases, *rows, "compare layers", "certify", "write"]
    assert ran.stdout.count("merged model: two/merged") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "two"]
    assert json.loads((tmp_path / "two/evaluation.json").read_text())["provenance"]["processes"] == 2

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))
    assert main([*PAIR, *recipes, "hardware=cpu", "output.dir=one"]) == 0
    for file in ("model", "heads"):
        one, two = (load_file(tmp_path / run / f"merged/{file}.safetensors") for run in ("one", "two"))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
def test_the_submitit_launcher_starts_the_processes_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    job = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=2"]
    assert main(["merge", "--multirun", *PAIR[1:], *TWO, *job, "hydra.sweep.dir=sweep"]) == 0
    assert capsys.readouterr().err == ""  # what a job says is in its log
    (evaluation,) = tmp_path.glob("outputs/*/evaluation.json")
    assert json.loads(evaluation.read_text())["provenance"]["processes"] == 2
    assert len([*tmp_path.glob("sweep/jobs/*.json")]) == 1


def test_what_failed_in_another_process_is_said_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs").mkdir()
    failed = {"run": "seed=1", "exit_code": 2, "error": "no"}
    (tmp_path / "jobs/0.json").write_text(json.dumps(failed))
    codes: list[int] = []
    monkeypatch.setattr("fsmerge_cli.cli.sweep.codes", codes)
    SweepSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert capsys.readouterr().err == "seed=1\nfsmerge: error: no\n"
    assert codes == [2]
