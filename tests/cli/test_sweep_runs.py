"""Sweeps over a grid: the table, failed jobs and unknown keys."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fsmerge_cli.methods import METHODS
from tests.support.command import PAIR, Command, keys_of


def summary(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.rglob("summary.csv")
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
def test_a_sweep_ends_with_one_table_of_all_runs(fsmerge: Command, tmp_path: Path) -> None:
    arguments = ["method=fs_merge,kd", "seed=0,1", "method.steps=5"]
    code, out, err = fsmerge("merge", "--multirun", PAIR, *arguments)
    assert code == 0
    labels = [
        f"models=digits_mlp_pair method={method} seed={seed} method.steps=5"
        for method in ("fs_merge", "kd")
        for seed in (0, 1)
    ]
    assert [line.rstrip("─ ") for line in err.splitlines() if line.startswith("models=")] == labels
    table = out.partition("All runs, ")[2]
    shown = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    assert shown == [f"method={method} seed={seed}" for method in ("fs_merge", "kd") for seed in (0, 1)]
    rows = summary(tmp_path / "outputs/sweeps")
    assert [row["run"] for row in rows] == labels
    assert [row["exit_code"] for row in rows] == ["0"] * 4
    evaluations = [
        json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("digits_mlp_pair-*/evaluation.json")
    ]
    merged = {
        f"{e['method']} {e['provenance']['seed']}": e["rows"]["merged"]["tasks"]["high"]["top1"]
        for e in evaluations
    }
    assert len(evaluations) == len(merged) == 4
    assert [float(row["high"]) for row in rows] == [
        merged[f"{method} {seed}"] for method in ("fs_merge", "kd") for seed in (0, 1)
    ]


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
@pytest.mark.parametrize(
    ("arguments", "codes", "failure"),
    [
        (
            ["method.maps=full,low_rank,diagonal", "method.rank=100"],
            [0, 2, 0],
            "fsmerge: error: method.rank=100 is above the width of the merged model (64). Take a rank below it, "
            "or method.maps=full.\n",
        ),
        (
            ["method.lr=0.001,1e30,0.002", "data.images_per_task=10"],
            [0, 1, 0],
            "Try a third of the learning rate (method.lr=...), maps of lower rank, or method.retries=2, which "
            "restarts with half the learning rate.\n",
        ),
    ],
    ids=["input", "training"],
)
def test_a_failed_job_is_reported_at_once_and_the_others_still_run(
    arguments: list[str], codes: list[int], failure: str, fsmerge: Command, tmp_path: Path
) -> None:
    code, out, err = fsmerge("merge", "--multirun", PAIR, "method.steps=5", *arguments)
    assert code == max(codes)
    assert "Traceback" not in err
    first, second, third = err.split("models=digits_mlp_pair method.steps=5 ")[1:]
    assert failure in second
    assert "evaluate merged: 540/540" in first
    assert "evaluate merged: 540/540" in third
    table = [line.split("│") for line in out.partition("All runs, ")[2].splitlines() if line.startswith("│")]
    assert [row[6].strip() == f"failed ({c})" for row, c in zip(table, codes)] == [False, True, False]
    rows = summary(tmp_path / "outputs/sweeps")
    assert [int(row["exit_code"]) for row in rows] == codes
    assert [row["mean"] == "" for row in rows] == [False, True, False]
    assert len(list((tmp_path / "outputs").glob("digits_mlp_pair-*"))) == 2


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
def test_a_second_sweep_into_the_same_folder_lists_only_its_own_runs(fsmerge: Command, tmp_path: Path) -> None:
    common = ["merge", "--multirun", PAIR, "method=average", "hydra.sweep.dir=sweep", "output.overwrite=true"]
    assert fsmerge(*common, "seed=0,1,2").code == 0
    assert len(summary(tmp_path / "sweep")) == 3
    assert fsmerge(*common, "seed=3,4").code == 0
    assert [row["run"].rsplit(" ", 1)[1] for row in summary(tmp_path / "sweep")] == ["seed=3", "seed=4"]


@pytest.mark.full
@pytest.mark.parametrize("methods", ["average,kd", "kd,average"])
def test_a_key_that_one_choice_of_a_sweep_does_not_have_is_reported(methods: str, fsmerge: Command) -> None:
    ran = fsmerge("merge", "--multirun", PAIR, f"method={methods}", "method.steps=5")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"fsmerge: error: unknown key in method 'steps'. Available: {keys_of(METHODS['average'])}.\n"
    )
