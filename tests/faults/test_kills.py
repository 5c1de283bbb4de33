"""A run that is killed at any moment and resumed ends with the bytes of an uninterrupted one, and leaves nothing.

For every method that trains, the closed form and `finetune`, MLP and ViT, in every phase from reading the
configuration to the last line that is printed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.finetuning import VIT, small_finetune
from tests.support.killed import Kill, Ran, comparable, fsmerge

LOW, HIGH = "01234", "56789"
DIGITS = ["data=digits", "data.images_per_task=40", "hardware.threads=1", "checkpoint.every=3"]
TRAINING = [
    "training.head_steps=12",
    "training.steps=12",
    "training.batch_size=16",
    "training.patience=null",
    "hardware.threads=1",
]
FINETUNE = ["finetune", "data=digits", "data.images_per_task=60", "checkpoint.every=3", *TRAINING]
SHORT = ["method.steps=24", "method.batch_size=16"]
PAPER = ["method=fs_merge_paper", *SHORT, "method.rank=2"]
MLP_PAIR = ["merge", "+models=digits_mlp_pair", *DIGITS]
VIT_PAIR = ["merge", "+models.sources=[{name:low,checkpoint:VITS/low},{name:high,checkpoint:VITS/high}]", *DIGITS]
FULL = ["method=fs_merge", *SHORT, "method.finetune_share=0.5", "method.start=matched"]
CLOSED_FORM = ["method=fs_closed_form", "method.views=1", "method.steps=9", "checkpoint.every=1"]
TRIO = ["merge", "+models=digits_mlp_trio", *DIGITS]

MLP_ARCH = "model.arch={family:mlp,input_size:[1,8,8],widths:[16,16]}"
CLASSES = "model.labels=['0','1','2','3','4']"

REGULARISED = ["training.mixup=0.2", "training.cutmix=1.0", "training.randaugment=5", "training.ema=0.9"]
REGULARISED += ["training.stochastic_depth=0.2", "training.patch_drop=0.5", "training.plain_share=0.3"]
TEACHERS = ["method.standardise=whitened", "method.balance=errors", "method.low_resolution=0.5"]
RUNS: dict[str, list[str]] = {
    "MLP, kd": [*MLP_PAIR, "method=kd", *SHORT],
    "MLP, fs_merge": [*MLP_PAIR, *FULL],
    "MLP, fs_merge and the row kd": [*MLP_PAIR, *FULL, "evaluation.kd=true"],
    "MLP, sequential": [*TRIO, *FULL, "method.sequential=true"],
    "MLP, fs_merge_paper": [*MLP_PAIR, *PAPER],
    "MLP, finetune": [*FINETUNE, MLP_ARCH, "model.start=random", CLASSES],
    "MLP, straight_through": [*MLP_PAIR, "method=straight_through", *SHORT],
    "MLP, fs_closed_form": [*MLP_PAIR, *CLOSED_FORM],
    "ViT, kd": [*VIT_PAIR, "method=kd", *SHORT],
    "MLP, fs_merge from the closed form": [*MLP_PAIR, *FULL, "method.start=closed_form"],
    "ViT, kd from the closed form": [*VIT_PAIR, "method=kd", *SHORT, "method.start=closed_form"],
    "ViT, fs_merge": [*VIT_PAIR, *FULL],
    "ViT, fs_merge from the closed form": [*VIT_PAIR, *FULL, "method.start=closed_form"],
    "ViT, fs_merge_paper": [*VIT_PAIR, *PAPER],
    "ViT, kd of several teachers": [*VIT_PAIR, "method=kd", *SHORT, *TEACHERS],
    "ViT, straight_through": [*VIT_PAIR, "method=straight_through", *SHORT],
    "ViT, fs_closed_form": [*VIT_PAIR, *CLOSED_FORM],
    "ViT, finetune": [*FINETUNE, "model.checkpoint=VITS/low", CLASSES],
    "ViT, regularised, finetune": [*FINETUNE, "model.checkpoint=VITS/low", CLASSES, *REGULARISED],
}
IN_TEST = ("ViT, fs_merge",)
"""Runs in `make test`; the others in `make test-slow`."""

BEFORE = ["composing", "loading", "read test images"]
AFTER = ["model", "scores", "rename"]
CHAINS = {
    "merge": [
        *(*BEFORE, "read images", "capture", ("train", 1), ("train", 6), ("train", 6), "saving", "saved"),
        *("evaluate", "certify", *AFTER),
    ],
    "fs_closed_form": [
        *(*BEFORE, "read images", "solve", ("solve", 1), ("train", 2), "saving"),
        *("saved", "evaluate", "certify", *AFTER),
    ],
    "finetune": [
        *(*BEFORE, "check images", "features", ("train the", 4), ("train all", 2), ("train all", 4)),
        *("saving", "saved", "evaluate", *AFTER),
    ],
}
"""Points at which one run is killed, one after the other. Moments count from the last saved step."""

PUBLISHED = ["state", "state half", "log", "log half", "table"]
"""Points after the folder has its name."""

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vits")
    for name, labels in (("low", LOW), ("high", HIGH)):
        small_finetune(VIT, name, tuple(labels), output=folder / name, training={"head_steps": 5, "steps": 5})
    return folder


Arguments = Callable[[str, Path], list[str]]
Written = dict[str, Any]


@pytest.fixture(scope="module")
def arguments(vits: Path) -> Arguments:
    """The command of a run into a folder."""

    def of(run: str, out: Path) -> list[str]:
        return [*(part.replace("VITS", str(vits)) for part in RUNS[run]), f"output.dir={out}"]

    return of


@pytest.fixture(scope="module")
def uninterrupted(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """What a run writes that is not disturbed."""
    found: dict[str, Written] = {}

    def of(run: str) -> Written:
        if run not in found:
            place = tmp_path_factory.mktemp("uninterrupted")
            ran = fsmerge(arguments(run, place / "out"), place / "log")
            assert ran.code == 0, ran.err
            found[run] = comparable(place / "out")
        return found[run]

    return of


def points(run: str) -> Iterator[Kill]:
    kind = run.rpartition(", ")[2]
    for number, point in enumerate(CHAINS.get(kind, CHAINS["merge"])):
        name, moment = point if isinstance(point, tuple) else (point, 0)
        yield Kill(name, moment, SIGNALS[number % len(SIGNALS)])


def check_end(ran: Ran, kill: Kill) -> None:
    """The process ended by the signal, or had passed the point before; with a message, never with a traceback."""
    if kill.signal == signal.SIGKILL:
        assert ran.code in (-signal.SIGKILL, 0), ran.err
    else:
        assert ran.code in (128 + kill.signal, 0), ran.err
        assert ran.code == 0 or f"fsmerge: interrupted by {signal.Signals(kill.signal).name}" in ran.err
    assert "Traceback" not in ran.err


def check_whole(place: Path, expected: dict[str, Any]) -> None:
    assert comparable(place / "out") == expected
    assert {path.name for path in place.iterdir()} == {"out"}


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=pytest.mark.full if run in IN_TEST else pytest.mark.slow) for run in RUNS]
)
def test_a_run_that_is_killed_and_resumed_again_and_again(
    run: str, arguments: Arguments, uninterrupted: Callable[[str], Written], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    command, log = arguments(run, place / "out"), tmp_path / "log"
    expected = uninterrupted(run)
    killed = 0
    for kill in points(run):
        ran = fsmerge([*command, "resume=true"], log, kill)
        check_end(ran, kill)
        killed += ran.code != 0
        assert not (place / "out").exists(), kill
    assert killed == len([*points(run)])
    ran = fsmerge([*command, "resume=true"], log)
    assert ran.code == 0, ran.err
    check_whole(place, expected)


@pytest.mark.full
@pytest.mark.parametrize("resume", [True, False], ids=["resume", "same command"])
@pytest.mark.parametrize("point", PUBLISHED)
def test_a_kill_after_the_folder_has_its_name(
    point: str, resume: bool, arguments: Arguments, uninterrupted: Callable[[str], Written], tmp_path: Path
) -> None:
    """The run is finished: the next command into the folder cleans up, whether it resumes or is refused."""
    place, log = tmp_path / "place", tmp_path / "log"
    command = arguments("MLP, kd", place / "out")
    ran = fsmerge(command, log, Kill(point))
    assert ran.code == -signal.SIGKILL
    assert (place / "out").is_dir()
    assert {path.name for path in place.iterdir()} != {"out"} or point == "table"
    ran = fsmerge([*command, "resume=true"] if resume else command, log)
    if resume:
        assert (ran.code, ran.err) == (0, "")
    else:
        assert ran.code == 2
        assert ran.err == (
            f"fsmerge: error: {place}/out holds a finished run. Pass output.overwrite=true to replace it, or "
            "choose another output.dir=...\n"
        )
    check_whole(place, uninterrupted("MLP, kd"))


@pytest.mark.full
@pytest.mark.parametrize("run", ["MLP, kd", "MLP, finetune"])
def test_a_run_that_replaces_a_finished_one_is_resumed(
    run: str, arguments: Arguments, uninterrupted: Callable[[str], Written], tmp_path: Path
) -> None:
    place, log = tmp_path / "place", tmp_path / "log"
    command = [*arguments(run, place / "out"), "output.overwrite=true"]
    assert fsmerge([*command, "seed=5"], log).code == 0
    assert fsmerge(command, log, Kill("train", 4)).code == -signal.SIGKILL
    assert fsmerge([*command, "resume=true"], log, Kill("evaluate")).code == -signal.SIGKILL
    ran = fsmerge([*command, "resume=true"], log)
    assert ran.code == 0, ran.err
    check_whole(place, uninterrupted(run))


@pytest.mark.full
def test_the_state_of_a_run_that_was_to_replace_a_finished_one_is_kept(
    arguments: Arguments, tmp_path: Path
) -> None:
    """Only what is older than the result goes: the interrupted run can still be continued."""
    place, log = tmp_path / "place", tmp_path / "log"
    command = arguments("MLP, kd", place / "out")
    assert fsmerge(command, log).code == 0
    assert fsmerge([*command, "output.overwrite=true", "seed=5"], log, Kill("train", 8)).code == -signal.SIGKILL
    assert fsmerge(command, log).code == 2
    assert fsmerge([*command, "resume=true"], log).code == 0  # the finished one
    assert {path.name for path in place.iterdir()} == {"out", ".out.state", ".out.logs"}
    resumed = fsmerge([*command, "output.overwrite=true", "seed=5", "resume=true"], log)
    assert resumed.code == 0
    assert "train: 24/24" in resumed.err
    assert {path.name for path in place.iterdir()} == {"out"}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(40))
def test_forty_random_kills(
    number: int, arguments: Arguments, uninterrupted: Callable[[str], Written], tmp_path: Path
) -> None:
    """A random run, signal and moment; then the same command, then `resume=true`."""
    chosen = random.Random(number)
    run = chosen.choice([*RUNS])
    place, log = tmp_path / "place", tmp_path / "log"
    command = arguments(run, place / "out")
    expected = uninterrupted(run)
    for _ in range(chosen.randint(1, 3)):
        kill = chosen.choice(
            [*points(run), *map(Kill, PUBLISHED), Kill("milliseconds", chosen.randrange(1, 4000))]
        )
        kill = kill._replace(signal=chosen.choice(SIGNALS))
        check_end(fsmerge([*command, "resume=true"], log, kill), kill)
    again = fsmerge(command, log)
    assert again.code in (0, 2), again.err
    assert again.code == 0 or re.search(
        r"holds a finished run\. |left its state \(step \d+ of \d+\)\. ", again.err
    )
    resumed = fsmerge([*command, "resume=true"], log)
    assert resumed.code == 0, (kill, resumed.err)
    check_whole(place, expected)


@pytest.mark.full
def test_a_finished_finetune_is_not_taken_for_that_of_another_checkpoint(
    arguments: Arguments, vits: Path, tmp_path: Path
) -> None:
    place, log = tmp_path / "place", tmp_path / "log"
    shutil.copytree(vits / "low", tmp_path / "start")
    command = [
        part.replace(f"{vits}/low", f"{tmp_path}/start") for part in arguments("ViT, finetune", place / "out")
    ]
    assert fsmerge(command, log).code == 0
    assert fsmerge([*command, "resume=true"], log) == Ran(0, "")
    shutil.copy(vits / "high/model.safetensors", tmp_path / "start/model.safetensors")
    assert fsmerge([*command, "resume=true"], log) == Ran(
        2,
        f"fsmerge: error: resume=true: source 'digits' has changed since the finished run in {place}/out: "
        f"{tmp_path}/start. "
        "Choose another output.dir=..., or start over with resume=false output.overwrite=true.\n",
    )


@pytest.mark.full
@pytest.mark.parametrize("umask", [0o027, *(pytest.param(n, marks=pytest.mark.slow) for n in (0o002, 0o077))])
@pytest.mark.parametrize("run", ["MLP, kd", "ViT, finetune"])
def test_everything_that_is_written_follows_the_umask(
    run: str, umask: int, arguments: Arguments, tmp_path: Path
) -> None:
    place, log = tmp_path / "place", tmp_path / "log"
    command = [*arguments(run, place / "out"), "output.tensorboard=true"]
    cache = tmp_path / "cache"
    before = os.umask(umask)
    try:
        assert fsmerge(command, log, Kill("evaluate"), FSMERGE_CACHE=str(cache)).code == -signal.SIGKILL
        found = [*place.rglob("*"), *cache.rglob("*")]
        assert fsmerge([*command, "resume=true"], log, FSMERGE_CACHE=str(cache)).code == 0
        found += [*place.rglob("*")]
    finally:
        os.umask(before)
    for path in found:
        if path.exists() and path.suffix != ".lock":
            assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
