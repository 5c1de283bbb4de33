"""`fsmerge compare --group-by`: mean and standard deviation of the runs that differ in one key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.runs.compare import RunEntry
from fsmerge_cli.runs.grouping import group_points, group_rows, grouped


def entry(folder: str, method: str, seed: int, mean: float, seconds: float = 10.0, **more: Any) -> RunEntry:
    config = {"method": {"name": method}, "seed": seed, "hardware": {"threads": seed}, **more}
    evaluation = {"config": config, "tasks": ["a"], "method": method}
    return RunEntry(Path(folder), evaluation, {"mean": mean, "seconds": seconds, "joint": None}, {})


RUNS = [
    entry("a0", "average", 0, 0.5),
    entry("k0", "kd", 0, 0.7, 10),
    entry("k1", "kd", 1, 0.8, 20),
    entry("f0", "fs_merge", 0, 0.8),
    entry("f1", "fs_merge", 1, 0.9),
]


def test_groups_have_mean_and_sample_standard_deviation_and_differences_of_the_same_seed() -> None:
    groups = grouped(RUNS, "seed", "mean")
    rows = group_rows(groups, "seed")
    assert [row["run"] for row in rows] == ["method=fs_merge", "method=kd", "method=average"]
    assert [row["runs"] for row in rows] == [2, 2, 1]
    assert [row["seed"] for row in rows] == ["0,1", "0,1", "0"]
    assert [row["mean"] for row in rows] == pytest.approx([0.85, 0.75, 0.5])
    assert [row["mean_std"] for row in rows][:2] == pytest.approx([0.005**0.5] * 2)
    assert rows[2]["mean_std"] is None
    assert (rows[0]["joint"], rows[0]["joint_std"]) == (None, None)
    assert rows[0]["difference"] is None
    assert rows[1]["difference"] == pytest.approx(-0.1)
    assert rows[1]["difference_std"] == pytest.approx(0.0)  # the same for both seeds, unlike the means
    assert rows[2]["difference"] == pytest.approx(-0.3)  # only seed 0
    assert rows[1]["folders"] == "k0 k1"
    assert [row["run"] for row in group_rows(grouped(RUNS, "seed", "seconds"), "seed")][-1] == "method=kd"


def test_a_point_has_the_standard_deviations_as_error_bars() -> None:
    points = {point.method: point for point in group_points(grouped(RUNS, "seed", "mean"), "mean")}
    kd, error = points["kd"], 0.005**0.5
    assert (kd.x, kd.y) == pytest.approx((15, 0.75))
    assert (kd.low, kd.high) == pytest.approx((0.75 - error, 0.75 + error))
    assert (kd.left, kd.right) == pytest.approx((15 - 50**0.5, 15 + 50**0.5))
    assert (points["average"].low, points["average"].left) == (None, None)


def test_runs_that_differ_in_another_key_are_not_one_group() -> None:
    other = entry("k2", "kd", 2, 0.9, data={"name": "other"})
    same = entry("k3", "kd", 3, 0.9, data={"name": "other"})
    groups = grouped([*RUNS, other, same], "seed", "mean")
    assert sorted(len(group.runs) for group in groups) == [1, 2, 2, 2]


def test_runs_of_other_sources_are_not_one_group_and_have_no_difference() -> None:
    """The same options, but the files of the sources were written anew between the runs."""
    runs = [entry(f"{method}{seed}", method, seed, 0.5) for method in ("kd", "fs_merge") for seed in (0, 1)]
    for run, digest in zip(runs, ("old", "new", "old", "other")):
        run.evaluation["provenance"] = {"sources": [{"name": "a", "sha256": digest}]}
    rows = group_rows(grouped(runs, "seed", "mean"), "seed")
    assert [(row["folders"], row["difference"]) for row in rows] == [
        ("kd0", None),
        ("kd1", None),
        ("fs_merge0", 0.0),
        ("fs_merge1", None),
    ]
    by_source = [entry(f"kd{x}", "kd", 0, 0.5, **{"models": {"sources": x}}) for x in "ab"]
    for run, digest in zip(by_source, "ab"):
        run.evaluation["provenance"] = {"sources": [{"name": "a", "sha256": digest}]}
    assert [len(own.runs) for own in grouped(by_source, "models.sources", "mean")] == [2]


def test_an_unknown_key_and_a_repeated_run_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        grouped(RUNS, "sed", "mean")
    assert str(error.value) == (
        "--group-by: unknown key 'sed'. Did you mean 'seed'? Available: hardware.threads, method.name, seed."
    )
    with pytest.raises(ConfigError) as error:
        grouped([*RUNS, entry("again", "kd", 1, 0.8)], "seed", "mean")
    assert str(error.value) == (
        "--group-by seed: k1 and again have the same options and seed=1, so they would be counted twice. "
        "Leave out one of them."
    )
