"""The measuring scripts run and write their tables; the measured values are not tested."""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.full

FIELDS = "name what bar met shape batch k device threads precision versions repeats ratio measured note".split()  # noqa: SIM905


def script(name: str) -> ModuleType:
    return import_module(f"scripts.speed.{name}")


@pytest.mark.parametrize(
    ("value", "bar", "sense", "kept"),
    [
        (1.12, 1.12, "at most", True),
        (1.1200001, 1.12, "at most", False),
        (0.95, 0.95, "at least", True),
        (0.9499999, 0.95, "at least", False),
        (None, 1.12, "at most", None),
        (7.7, None, "at most", None),
    ],
)
def test_a_bar_is_met_up_to_and_including_its_value(
    value: float | None, bar: float | None, sense: str, kept: bool | None
) -> None:
    assert script("measure").met(value, bar, sense) is kept


def test_ratios_are_taken_pair_by_pair_without_the_warm_up() -> None:
    measure = script("measure")
    first, second = iter([100.0, 2.0, 9.0, 4.0]), iter([1.0, 1.0, 3.0, 4.0])
    pairs = measure.interleaved(lambda: next(first), lambda: next(second), repeats=3)
    assert pairs == [(2.0, 1.0), (9.0, 3.0), (4.0, 4.0)]
    found = measure.ratios(pairs)
    assert found == {"repeats": 3, "ratio": {"min": 1.0, "median": 2.0, "max": 3.0}, "medians": [4.0, 3.0]}


@pytest.mark.slow
def test_the_bench_measures_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, sides, output = script("bench"), script("sides"), tmp_path / "bench.json"
    peak = cache(sides.cpu_peak_in_child)  # starting a process takes seconds: one per method is enough here
    monkeypatch.setattr(sides, "cpu_peak_in_child", lambda *side: peak(*side[:-1], True))
    threads = torch.get_num_threads()
    assert bench.main(["--quick", "--output", str(output)]) == 0
    assert torch.get_num_threads() == threads
    lines = json.loads(output.read_text())["rows"]
    assert [line["name"] for line in lines] == [row.name for row in bench.rows()]
    for line in lines:
        assert set(FIELDS) <= line.keys()
        assert set(line["versions"]) == {"python", "torch", "timm"}
        assert line["threads"] == 1
        if line["ratio"] is None:
            assert line["note"] == "unmeasured: no CUDA device"
            assert (line["met"], line["repeats"]) == (None, 0)
            continue
        ratio = line["ratio"]
        assert ratio["min"] <= ratio["median"] <= ratio["max"]
        assert (
            ratio["min"] > 0 or line["kind"] == "memory"
        )  # at this size most of the memory is that of the sources
        assert (line["met"] is None) == (line["bar"] is None)
    assert all(line["ratio"] for line in lines if not line["first"].get("device", "cpu").startswith("cuda"))
    assert "quick: the shapes are not those of the bars" in " ".join(capsys.readouterr().out.split())


def test_rows_that_are_not_measured_keep_the_values_of_the_file(tmp_path: Path) -> None:
    bench, output = script("bench"), tmp_path / "bench.json"
    kept = bench.entry(bench.rows()[2], None) | {"ratio": {"min": 1.0, "median": 1.01, "max": 1.1}, "met": True}
    kept |= {"unit": "s", "medians": [1.0, 1.0], "repeats": 20, "note": ""}
    output.write_text(json.dumps({"rows": [kept], "quick": True}))
    assert bench.main(["--quick", "--only", "help", "--output", str(output)]) == 0
    lines = {line["name"]: line for line in json.loads(output.read_text())["rows"]}
    assert lines["step-low-rank-gpu"] == kept
    assert lines["help"]["ratio"]
    assert lines["teacher-cpu"]["note"] == "unmeasured: not selected"
    with pytest.raises(SystemExit, match="--only: unknown row speed; available: step-low-rank-cpu, "):
        bench.main(["--only", "speed", "--output", str(output)])


def test_the_cost_page_is_filled_between_its_markers(tmp_path: Path) -> None:
    cost, page, output = script("cost"), tmp_path / "page.md", tmp_path / "cost.json"
    text = (REPOSITORY / "docs/how-cost-grows.md").read_text()
    page.write_text(text)
    assert cost.main(["--quick", "--output", str(output), "--page", str(page)]) == 0
    # Only the tables of an earlier run are replaced.
    assert cost.fill(page.read_text(), "cost.py", "") == cost.fill(text, "cost.py", "")
    filled = page.read_text()
    assert filled.split("<!-- cost.py: begin -->")[0] == text.split("<!-- cost.py: begin -->")[0]
    assert filled.count("| exponent |") == len(cost.AXES)
    axes = json.loads(output.read_text())["axes"]
    assert [axis["axis"] for axis in axes] == list(cost.AXES)
    assert all(set(axis["slopes"]) == set(cost.COLUMNS) for axis in axes)


@pytest.mark.parametrize("structure", ["low_rank", "full"])
def test_the_operations_of_a_fold_match_the_page(structure: str) -> None:
    cases, cost = script("cases"), script("cost")
    counted, stated = [], []
    for depth in (1, 2):
        shape = cases.Shape(width=256, depth=depth, rank=8, batch=2, size=32)
        step = cases.Case(shape).fold_step(structure)
        step()  # creates the initial gradients
        with FlopCounterMode(display=False) as counter:
            step()
        counted.append(counter.get_total_flops())
        stated.append(cost.fold_flops(shape, structure))
    assert counted[1] - counted[0] == pytest.approx(
        stated[1] - stated[0], rel=0.04
    )  # biases, diagonals, rank x rank


@pytest.mark.slow
def test_scale_runs_the_real_command_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale, output = script("scale"), tmp_path / "scale.json"
    assert scale.main(["--small", "--output", str(output), "--folder", str(tmp_path)]) == 0
    found = json.loads(output.read_text())
    assert (found["met"], found["end"], found["steps"], found["k"]) == (True, "done", 3, 4)
    assert 0.1 < found["peak_gb"] < 4
    assert set(found["seconds"]) == {"sources", "data", "fit", "evaluate", "certify", "whole process"}
    assert found["command"].startswith("fsmerge merge --config-dir=FOLDER/configs +models=four data=folder ")
    assert str(tmp_path) not in output.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["scale.json"]  # no temporary files remain
    assert "<= 16 GB: met" in capsys.readouterr().out
