"""Saving and resuming: a resumed run ends with the same bytes as an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, OutputError
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods import METHODS, Problem, Solution, closed_form_solution
from fsmerge_cli.training import state_file
from fsmerge_cli.training.snapshots import SaveInterval, Snapshot, Snapshots, check_state, state_folder
from tests.support.killed import comparable
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

METHOD_OPTIONS = {
    "kd": {},
    "fs_merge": {"maps": "low_rank", "rank": 2},
    "fs_merge full": {"maps": "full", "start": "matched"},
    "fs_merge closed form": {"start": "closed_form"},
    "fs_merge heads": {"maps": "heads", "rank": 2},
    "fs_merge sequential": {"sequential": True},
    "straight_through": {},
    "kd of several teachers": {"standardise": "whitened", "balance": "errors"},
}
SOURCES = {
    "mlp": lambda: [mlp_source(f"s{i}", [8, 6], i) for i in range(3)],
    "vit": lambda: [vit_source("class token", i) for i in range(3)],
}
READING = {
    "reading": lambda: [replace(vit_source("class token", i), name=f"s{i}", reads="both") for i in range(3)]
}
"""Sources whose patch tokens count too."""


@pytest.fixture(autouse=True)
def few_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form_solution, "IMAGES_PER_TASK", 20)


class StopError(Exception):
    """Ends a training like a kill, but inside this process."""


def fit(
    make_problem: Callable[..., Problem],
    name: str,
    folder: Path | None,
    stop_after: int | None = None,
    kind: str = "mlp",
    **options: Any,
) -> Solution:
    """A short training of three sources; raises StopError after `stop_after` steps over all trainings."""
    done = 0

    def progress(event: Event) -> None:
        nonlocal done
        done += event.phase == "train" and bool(event.values)  # a step
        if done == stop_after:
            raise StopError

    problem = make_problem({**SOURCES, **READING}[kind](), per_task=20, held=8)
    problem = replace(
        problem, progress=progress, snapshots=Snapshots(folder, every=SaveInterval(steps=5), progress=progress)
    )
    settings = {"steps": 24, "batch_size": 16, **METHOD_OPTIONS[name], **options}
    return METHODS[name.split()[0]](**settings).fit(problem)


STOPS_OF = {
    "kd": (3, 13),
    "kd of several teachers": (13,),
    "straight_through": (3, 13),
    "fs_merge sequential": (3, 24, 13),
}
"""Steps after which the training and each of its continuations are stopped; the others: two times with maps, then
in the fine-tuning of the folded weights. Sequential: in the first part, near its end, in the second part."""


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in SOURCES for name in METHOD_OPTIONS]
    + [("reading", "kd"), ("reading", "fs_merge full")],
)
def test_a_resumed_training_ends_with_the_same_bytes(
    make_problem: Callable[..., Problem], tmp_path: Path, kind: str, name: str
) -> None:
    """Stopped in every phase, each time from the state of the stop before."""
    options: dict[str, Any] = {"finetune_share": 0.5} if name.startswith("fs_merge") else {}
    options |= {"low_resolution": 0.5} if kind == "reading" else {}
    expected = fit(make_problem, name, None, kind=kind, **options)
    for steps in STOPS_OF.get(name, (6, 8, 12)):
        with pytest.raises(StopError):
            fit(make_problem, name, tmp_path, steps, kind, **options)
    resumed = fit(make_problem, name, tmp_path, kind=kind, **options)
    assert resumed.trace == expected.trace
    for name_, tensor in expected.weights.items():
        assert torch.equal(resumed.weights[name_], tensor), name_
    assert all(torch.equal(a, b) for a, b in zip(resumed.projectors, expected.projectors))


def test_finished_steps_are_not_repeated(make_problem: Callable[..., Problem], tmp_path: Path) -> None:
    with pytest.raises(StopError):
        fit(make_problem, "kd", tmp_path, stop_after=13)
    with pytest.raises(StopError):  # steps 11 and 12 were not saved
        fit(make_problem, "kd", tmp_path, stop_after=14)
    fit(make_problem, "kd", tmp_path)
    fit(make_problem, "kd", tmp_path, stop_after=1)  # a finished training takes no step


def test_all_random_generators_are_restored(tmp_path: Path) -> None:
    stage = Snapshot(Snapshots(tmp_path), tmp_path / "training1.safetensors")
    np.random.standard_normal()  # the generator caches a second value
    assert stage.save({"a": torch.ones(2)}, {"step": 1})
    expected = [torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.random()]
    loaded = stage.load()
    assert loaded is not None
    tensors, metadata = loaded
    assert expected == [torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.random()]
    assert metadata["step"] == 1
    assert list(tensors) == ["a"]


def test_a_full_disk_is_reported_and_the_older_state_is_kept(
    make_problem: Callable[..., Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []
    stage = Snapshot(
        Snapshots(tmp_path, progress=lambda e: phases.append(e.phase)), tmp_path / "training1.safetensors"
    )
    assert stage.save({"a": torch.ones(2)}, {"step": 1})
    before = (tmp_path / "training1.safetensors").read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_file, "save_file", full)
    assert not stage.save({"a": torch.zeros(2)}, {"step": 2})
    assert phases == ["the training state was not saved ([Errno 28] No space left on device); the run continues"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "training1.safetensors"]
    assert (tmp_path / "training1.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [(200, SaveInterval(steps=200)), ("90s", SaveInterval(seconds=90)), ("1.5m", SaveInterval(seconds=90))],
)
def test_intervals(value: int | str, expected: SaveInterval) -> None:
    assert SaveInterval.parse(value) == expected


@pytest.mark.parametrize("value", [0, -3, True, "60", "0s", "s", "1h", None, 1.5])
def test_wrong_intervals(value: object) -> None:
    with pytest.raises(ConfigError) as error:
        SaveInterval.parse(value)
    assert str(error.value) == (
        f"checkpoint.every={value!r}: give a number of steps (200), or seconds or minutes with their unit "
        "(60s, 5m)."
    )


def test_a_state_is_resumed_only_with_the_same_options(tmp_path: Path) -> None:
    out = tmp_path / "out"
    content = {"method": {"name": "kd", "lr": 0.1}, "seed": 0, "sha256": ["a", "b"]}
    check_state(out, content, resume=True, overwrite=False)
    folder = state_folder(out)
    assert folder == tmp_path / ".out.state"
    assert not folder.exists()  # created by the first save
    assert Snapshots(folder, content).next_training().save({}, {"step": 40, "steps": 100})
    check_state(out, content, resume=True, overwrite=False)
    with pytest.raises(ConfigError) as other:
        check_state(out, {**content, "method": {"name": "kd", "lr": 0.2}, "sha256": ["a", "c"]}, True, False)
    assert str(other.value) == (
        f"resume=true: the interrupted run into {out} has other options:\n"
        "  - method.lr was 0.1 and is now 0.2\n"
        '  - sha256.1 was "b" and is now "c"\n'
        "Pass the same options, choose another output.dir=..., or start again with resume=false "
        "output.overwrite=true."
    )
    with pytest.raises(OutputError) as occupied:
        check_state(out, content, resume=False, overwrite=False)
    assert str(occupied.value) == (
        f"an interrupted run into {out} left its state (step 40 of 100). Pass resume=true to continue it, or "
        "output.overwrite=true to start again."
    )
    assert (folder / "training1.safetensors").exists()
    check_state(out, content, resume=False, overwrite=True)
    assert not folder.exists()


@pytest.mark.full
def test_ctrl_c_saves_and_prints_the_command_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fsmerge_cli.reporting import terminal

    shown = terminal.Reporter.__call__

    def press(self: Any, event: Event) -> None:
        shown(self, event)
        if event.phase == "train" and event.done == 9:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "my out"
    arguments = ["merge", "+models=digits_mlp_pair", "method=kd", "method.steps=30", f"output.dir={out}"]
    with monkeypatch.context() as patch:
        patch.setattr(terminal.Reporter, "__call__", press)
        assert main(arguments) == 130
    printed = capsys.readouterr().err
    assert printed.endswith(
        "fsmerge: interrupted by SIGINT; the training state is saved (step 10 of 30). Continue with\n"
        f"  fsmerge merge +models=digits_mlp_pair method=kd method.steps=30 'output.dir={out}' resume=true\n"
    )
    assert "Traceback" not in printed
    assert not out.exists()
    assert main(arguments) == 2
    assert "left its state (step 10 of 30). Pass resume=true to continue it" in capsys.readouterr().err
    assert main([*arguments, "method.lr=0.01", "resume=true"]) == 2
    assert "  - method.lr was null and is now 0.01\n" in capsys.readouterr().err
    assert main([*arguments, "resume=true"]) == 0
    assert not state_folder(out).exists()
    plain = tmp_path / "plain"
    assert main([*arguments[:-1], f"output.dir={plain}"]) == 0
    assert comparable(out) == comparable(plain)
    capsys.readouterr()
    assert main([*arguments, "resume=true"]) == 0
    assert "already finished: nothing was run\n" in capsys.readouterr().out
    assert main([*arguments, "resume=true", "seed=3"]) == 2
    assert "has other options:\n  - seed was 0 and is now 3\n" in capsys.readouterr().err
