"""`sweep=map` and `sweep=m2n2`: jobs, tables and messages."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file

from fsmerge_cli.cli import main, niches
from fsmerge_cli.cli.front_sweeper import NichesSweeper
from fsmerge_cli.cli.search_space import search_space
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.reporting.plots import front

SWEEP = ["merge", "--quiet", "--multirun", "+models=digits_mlp_pair", "hardware=cpu", "hydra.sweep.dir=sweep"]
CONFIG = {"models": {"sources": [{}, {}, {}]}}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def table(name: str) -> list[dict[str, str]]:
    with Path("sweep", name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
def test_map_merges_its_design_and_the_front_that_it_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [*SWEEP, "method=slerp", "method.t=interval(0.2,0.8)", "sweep=map", "hydra.sweeper.n_trials=4"]
    assert main([*jobs, "hydra.sweeper.front=2"]) == 0, capsys.readouterr().err
    rows, predicted = table("pareto.csv"), table("surrogate.csv")
    assert len(rows) == 6
    assert len(predicted) == 2
    for row, own in zip(rows[4:], predicted):
        assert row["run"].endswith(own["run"])
        assert (row["folder"], row["low"], row["high"]) == (own["folder"], own["low"], own["high"])
        assert abs(float(own["low predicted"]) - float(own["low"])) < 0.3
        assert Path(own["folder"], "merged/model.safetensors").is_file()
    values = [[float(row["low"]), float(row["high"])] for row in rows]
    assert [row["front"] for row in rows] == [str(kept) for kept in front(values)]
    assert Path("sweep/pareto.svg").is_file()
    again = [*jobs, "hydra.sweeper.front=0"]  # the same design, and nothing of the front
    assert main(again) == 0
    assert [row["folder"] for row in table("pareto.csv")] == [row["folder"] for row in rows[:4]]
    assert len(table("surrogate.csv")) == 1
    assert table("surrogate.csv")[0]["folder"] == ""


@pytest.mark.full
def test_m2n2_begins_with_the_sources_and_every_child_is_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [*SWEEP, "method=slerp", "sweep=m2n2", "hydra.sweeper.n_trials=5", "hydra.sweeper.population=3"]
    assert main(jobs) == 0, capsys.readouterr().err
    rows = table("pareto.csv")
    assert len(rows) == 5
    methods = [yaml.safe_load(Path(row["folder"], "config.yaml").read_text())["method"] for row in rows]
    assert [own["shares"] for own in methods[:2]] == [[[1.0, 0.0]], [[0.0, 1.0]]]
    assert all(len(own["shares"]) == len(own["boundaries"]) + 1 for own in methods)
    assert any(own["boundaries"] for own in methods[2:])
    assert float(rows[0]["low"]) > 0.95 > 0.5 > float(rows[0]["high"])


def test_m2n2_counts_the_test_images_of_every_task_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {
        "task.a": torch.tensor([True, False]),
        "task.b": torch.tensor([True]),
        "joint.softmax": torch.ones(3),
    }
    save_file(stored, tmp_path / "correct.safetensors")
    (tmp_path / "unmeasured").mkdir()
    sweeper = NichesSweeper(n_trials=4, n_jobs=1, seed=0, population=4, alpha=1.0)
    rows = [{"folder": str(tmp_path)}, {"folder": str(tmp_path / "unmeasured")}, None]
    monkeypatch.setattr(sweeper, "run", lambda batch: rows)
    genomes = [niches.source(i, 3) for i in range(3)]
    found, scores = sweeper._evaluated(genomes, [])
    assert found == genomes[:1]
    assert scores.tolist() == [[1.0, 0.0, 1.0]]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*SWEEP, *arguments]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_searched_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["method=slerp", "sweep=map"], capsys) == (
        "fsmerge: error: sweep=map: method=slerp has no task weights, so there is nothing to search over. Give a "
        "range: 'method.KEY=interval(0.1,1)', or use method=task_arithmetic.\n"
    )
    assert refused(["method=slerp", "method.t=0.1,0.2", "sweep=map"], capsys) == (
        "fsmerge: error: method.t=0.1,0.2: sweep=map searches between two numbers. Pass method.t=interval(a,b), "
        "or one value.\n"
    )
    few = ["method=slerp", "method.t=interval(0,1)", "sweep=map", "hydra.sweeper.n_trials=2"]
    assert refused(few, capsys) == (
        "fsmerge: error: hydra.sweeper.n_trials=2: a quadratic in 1 coefficients needs 3 merges. Pass "
        "hydra.sweeper.n_trials=3 or more.\n"
    )
    assert refused(["method=average", "sweep=m2n2"], capsys) == (
        "fsmerge: error: sweep=m2n2 mixes sources by method=slerp, not method=average.\n"
    )


def test_the_search_space_is_that_of_the_method_where_no_interval_is_given() -> None:
    scaled = OmegaConf.create({**CONFIG, "method": {"name": "ties", "coefficient": 1.0, "task_weights": None}})
    space = search_space("map", scaled, ["method=ties", "seed=1"])
    assert (space.size, space.fixed) == (3, ("method=ties", "seed=1"))
    assert space.of([0.5, 0.25, 0.0])[:2] == ("method.coefficient=0.25", "++method.task_weights.0=0.5")
    weighted = OmegaConf.create({**CONFIG, "method": {"name": "average", "task_weights": None}})
    space = search_space("map", weighted, [])
    assert space.size == 2
    assert space.of([0.5, 0.0]) == (
        "++method.task_weights.0=1.0",
        "++method.task_weights.1=1.0",
        "++method.task_weights.2=0.0625",
    )
    given = ["method.a=interval(1,3)", "method.b=tag(log,interval(0.01,1))", "method.c=int(interval(2,6))"]
    space = search_space("map", weighted, given)
    assert space.of([0.5, 0.5, 0.6]) == ("method.a=2.0", "method.b=0.1", "method.c=4")
    small = search_space("map", weighted, ["method.lr=tag(log,interval(1e-8,1e-6))"])
    assert small.of([0.5]) == ("method.lr=1e-07",)
    with pytest.raises(ConfigError) as error:
        search_space("map", weighted, ["method.lr=tag(log,interval(0,1))"])
    assert str(error.value) == (
        "method.lr=tag(log,interval(0,1)): a range with tag(log,...) has positive ends. Pass "
        "method.lr=interval(0.0,1.0), or a larger start."
    )
    with pytest.raises(ConfigError, match="searches between two numbers"):
        search_space("map", weighted, ["method.a=choice(1,2)"])
