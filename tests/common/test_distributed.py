"""Ranks, shards and error messages of distributed runs, checked in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.cli.sweep import SweepSummary
from fsmerge_cli.common.distributed import World, outcome, process_rank
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
from tests.support.vits import VARIANTS, mark_full, vit_source

PAIR = ["merge", "+models=digits_mlp_pair", "method.steps=20", "data.images_per_task=40"]
TWO = ["hardware=multi_gpu", "hardware.device=cpu", "hardware.precision=fp32", "hardware.workers=0"]
CPU = torch.device("cpu")
Make = Callable[..., Problem]
Set = Callable[..., None]

ONE_PROCESS = (
    "hardware.distributed=true: only one process was started. Start N processes with\n"
    "  torchrun --nproc-per-node=N -m fsmerge_cli merge ... hardware=multi_gpu\n"
    "or let a cluster start them: fsmerge merge --multirun ... hardware=slurm"
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Set:
    def put(rank: int, size: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))

    return put


def students(problem: Problem) -> list[Student]:
    weights = problem.weights()
    supernet = SuperNet(problem.plan, start_maps(problem.plan, weights, "low_rank", "average", 2), weights)
    return [supernet, StudentNetwork(problem, "first", "linear")]


@pytest.mark.parametrize(("rows", "size"), [(0, 2), (1, 3), (7, 2), (8, 4), (9, 4)])
def test_shards_cover_every_row_once_and_differ_by_at_most_one_row(rows: int, size: int) -> None:
    shards = [World(rank, size).shard(torch.arange(rows)) for rank in range(size)]
    assert sorted(torch.cat(shards).tolist()) == list(range(rows))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_every_parameter_has_a_gradient_where_a_batch_lacks_a_task(variant: str, make_problem: Make) -> None:
    problem = make_problem([vit_source(variant, 1), vit_source(variant, 2)])
    targets = capture(problem.sources, problem.images, "own", Hardware(features="memory"), CPU, silent)
    rows = torch.tensor([0, 1])
    batch = Batch.of(problem.images.images, targets, rows)
    assert batch.counts().tolist() == [[2, 1], [1, 2]]
    for student in students(problem):
        objective(student, batch, targets).backward()
        assert [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_losses_and_gradients_of_shards_sum_to_those_of_the_batch(make_problem: Make) -> None:
    problem = make_problem()
    targets = capture(problem.sources, problem.images, "own", Hardware(features="memory"), CPU, silent)
    rows = torch.tensor([0, 13, 3, 20, 4, 23])  # one of the two shards has only images of the first task
    batch = Batch.of(problem.images.images.double(), targets, rows)
    for student in (s.double() for s in students(problem)[1:]):
        whole = objective(student, batch, targets)
        gradients = torch.autograd.grad(whole, list(student.parameters()))
        shards = [World(rank, 2).shard(batch.positions()) for rank in (0, 1)]
        counts = batch.counts()
        parts = [objective(student, batch, targets, LossWeights(), own, counts) for own in shards]
        torch.testing.assert_close(sum(parts), whole)
        added = torch.autograd.grad(sum(parts), list(student.parameters()))
        for expected, summed in zip(gradients, added):
            torch.testing.assert_close(summed, expected)


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


def test_a_single_process_gets_instructions_for_starting_several(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert process_rank() is None
    assert main([*PAIR, *TWO]) == 2
    assert capsys.readouterr() == ("", f"fsmerge: error: {ONE_PROCESS}\n")
    for hardware in ("multi_gpu", "slurm"):
        with pytest.raises(ConfigError) as error:
            merge("digits_mlp_pair", hardware=hardware)
        assert str(error.value) == ONE_PROCESS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_several_processes_without_hardware_distributed_are_refused_once(
    capsys: pytest.CaptureFixture[str], started: Set
) -> None:
    message = (
        "fsmerge: error: 4 processes were started, and each of them would run the whole merge. Pass "
        "hardware=multi_gpu (or hardware.distributed=true) to split the work, or start one process.\n"
    )
    for rank, expected in ((0, (2, message)), (3, (0, ""))):
        started(rank, 4)
        assert (main([*PAIR, "hardware=cpu"]), capsys.readouterr().err) == expected


def test_a_sweep_under_torchrun_is_refused_once(capsys: pytest.CaptureFixture[str], started: Set) -> None:
    message = (
        "fsmerge: error: --multirun under torchrun: 2 processes would each start every job. Start one run per "
        "torchrun, or let a cluster start the processes: fsmerge merge --multirun ... hardware=slurm\n"
    )
    for rank, expected in ((0, (2, message)), (1, (0, ""))):
        started(rank, 2)
        assert (main([*PAIR, *TWO, "--multirun", "seed=0,1"]), capsys.readouterr().err) == expected


def test_rank_0_reports_common_errors_and_other_ranks_only_their_own(started: Set) -> None:
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
            "hardware.device=cuda:1: 2 processes cannot share one device. Pass hardware.device=cuda, which gives "
            "every process a device of its own.",
        ),
        (
            "cuda",
            1,
            "2 processes were started on a machine with 1 CUDA device. Start one per device: "
            "torchrun --nproc-per-node=gpu ...",
        ),
    ],
)
def test_every_process_uses_its_own_device(
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


def test_without_the_slurm_plugin_the_message_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["merge", "--multirun", *PAIR[1:], "hydra/launcher=submitit_nowhere"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: hydra/launcher=submitit_nowhere (of hardware=slurm) needs Hydra's submitit launcher, "
        "which is not installed. Install it: pip install hydra-submitit-launcher\n"
    )


@pytest.mark.full
def test_a_missing_slurm_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["merge", "--multirun", *PAIR[1:], "hardware=slurm"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: hardware=slurm: Slurm is not available on this machine (no `srun`). Run the command on a "
        "login node, or use torchrun with hardware=multi_gpu.\n"
    )


def test_an_error_of_a_job_in_another_process_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs").mkdir()
    failed = {"run": "seed=1", "exit_code": 2, "error": "no"}
    (tmp_path / "jobs/00000.json").write_text(json.dumps(failed))
    codes: list[int] = []
    monkeypatch.setattr("fsmerge_cli.cli.sweep.codes", codes)
    SweepSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert capsys.readouterr().err == "seed=1\nfsmerge: error: no\n"
    assert codes == [2]
