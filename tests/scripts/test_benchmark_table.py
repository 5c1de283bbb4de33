"""Intervals, tables, goals and plot of the quality benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t

from scripts.benchmark import intervals, picture, table
from tests.support.benchmark_rows import row


def test_correct_images_are_unpacked_from_bits() -> None:
    correct = {"a": [1, 0, 1, 1, 0, 0, 0, 1, 1], "b": [0, 1]}
    assert {
        task: images.tolist() for task, images in intervals.correct_images(row(0, "kd", correct)).items()
    } == correct


def test_the_difference_is_paired_over_images_and_shared_seeds() -> None:
    def paired(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
        text: str = intervals.text_of(intervals.difference(ours, others))
        return text

    ours = [row(0, "fs_merge", {"a": [1, 1, 1, 0]}), row(1, "fs_merge", {"a": [1, 1, 0, 0]})]
    others = [row(0, "kd", {"a": [1, 0, 1, 0]}), row(2, "kd", {"a": [0, 0, 0, 0]})]
    gaps = np.array([0.0, 1.0, 0.0, 0.0])
    error = 100 * norm.ppf(0.975) * np.sqrt(gaps.var() / 4)
    assert paired(ours, others) == f"+25.0 [{25 - error:+.1f}, {25 + error:+.1f}]"
    others[1] = row(1, "kd", {"a": [0, 0, 0, 0]})  # gaps of 0.25 and 0.5 with these two seeds
    gaps = np.array([0.5, 1.0, 0.0, 0.0])
    error = 100 * np.sqrt(norm.ppf(0.975) ** 2 * gaps.var() / 4 + t.ppf(0.975, 1) ** 2 * 0.125**2)
    assert paired(ours, others) == f"+37.5 [{37.5 - error:+.1f}, {37.5 + error:+.1f}]"
    assert paired(others, others) == "+0.0 [+0.0, +0.0]"
    assert paired(ours, []) == "-"


@pytest.mark.full
def test_the_table_and_the_plot_are_written(tmp_path: Path) -> None:
    rows = [row(s, m, {"a": [1, 1, m == "kd", 0], "b": [1, 1, 1, s]}) for m in ("kd", "fs_merge") for s in (0, 1)]
    rows += [{**own, "group": "lower_hebrew"} for own in rows[2:]]
    table.write_results(rows, tmp_path)
    lines = (tmp_path / "quality.md").read_text().splitlines()
    assert "## digits_mlp_pair, 50 images per task" in lines
    assert "Sources 80.0 %; ensemble joint 70.0, calibrated 75.0 %." in lines
    assert any(
        line.startswith("| kd | 2 | 101.6 [") and line.endswith("| - | 50.0 | 60.0 | 3 | 2 | one CPU thread |")
        for line in lines
    )
    text = (tmp_path / "quality.svg").read_text()
    assert text.count(">kd</text>") == text.count(">fs_merge</text>") == 1  # one legend for all panels
    assert "a variant" not in text
    cells = [("b", "500"), ("b", "generated"), ("a", "50"), ("b", "16"), ("b", "auxiliary"), ("b", "100")]
    assert [images for _, images in sorted(cells, key=table._order)] == [
        *("50", "auxiliary", "generated", "16", "100", "500")
    ]


def test_every_method_has_its_own_marker_and_variants_share_another() -> None:
    styles = [picture._style(method) for method in picture.METHODS]
    assert len({(style["color"], style["marker"]) for style in styles}) == len(picture.METHODS)
    assert picture._style("kd_adamw") == picture.VARIANT
    assert picture.VARIANT not in styles


def test_rows_of_one_method_must_have_the_same_options(tmp_path: Path) -> None:
    rows = [row(s, "kd", {"a": [1, 1, 0, 0]}) for s in (0, 1)]
    rows[1]["overrides"] = ["method.steps=3"]
    with pytest.raises(SystemExit, match="the rows of kd were made with different options"):
        table.write_results(rows, tmp_path)


def test_rows_of_one_table_must_have_the_same_sources(tmp_path: Path) -> None:
    rows = [row(0, method, {"a": [1, 1, 0, 0]}) for method in ("kd", "fs_merge")]
    rows[1]["sources_sha256"] = {"a": "1" * 64}
    with pytest.raises(SystemExit, match="the rows were made from different sources"):
        table.write_results(rows, tmp_path)


@pytest.mark.full
def test_missing_rows_of_the_full_matrix_are_listed(tmp_path: Path) -> None:
    blocks = [
        ("digits_mlp_pair", "50", ("kd", "average"), (0,)),
        ("digits_mlp_pair", "50", ("kd", "average"), (1,)),
        ("lower_hebrew", "50", ("kd",), (0, 1)),
        ("lower_hebrew", "16", ("kd",), (0,)),
    ]
    correct = {"low": [1, 0], "high": [1, 1]}
    finished = [row(seed, "average", correct) for seed in (0, 1)] + [row(1, "kd", correct)]
    finished.append({**row(0, "kd", correct), "group": "lower_hebrew", "images": "16"})
    table.write_results(finished, tmp_path, blocks=blocks)
    text = (tmp_path / "quality.md").read_text()
    assert text.split("## Not measured yet\n")[1].splitlines()[-3:] == [
        "| images | method | groups with finished seeds |",
        "|---|---|---|",
        "| 50 | kd | digits_mlp_pair 1, lower_hebrew 0 |",
    ]
    table.write_results(finished, tmp_path, blocks=blocks[3:])
    assert "Not measured" not in (tmp_path / "quality.md").read_text()


def test_missing_calibration_is_shown_as_a_dash(tmp_path: Path) -> None:
    found = row(0, "kd", {"a": [1, 1, 0, 0]})
    for key in ("joint", "ensemble_joint"):
        del found[key]["softmax_calibrated"]
    table.write_results([{**found, "images": "generated"}], tmp_path)
    text = (tmp_path / "quality.md").read_text()
    assert "ensemble joint 70.0, calibrated - %." in text
    assert "| - | 50.0 | - | 3 | 2 | one CPU thread |" in text


@pytest.mark.full
def test_goals_and_scrambling_effect_are_computed_from_the_rows(tmp_path: Path) -> None:
    correct = {"kd": [1, 1, 1, 0], "fs_merge": [1, 1, 1, 1], "fs_merge_paper": [1, 0, 0, 0]}
    rows = [row(s, m, {"a": own, "b": own}) for m, own in correct.items() for s in (0, 1)]
    rows = [{**own, "group": "lower_hebrew", "sources": {"a": 1.0, "b": 1.0}} for own in rows]
    rows.append({**row(1, "kd", {"a": [1, 0, 1, 0], "b": [1, 1, 0, 0]}), "group": "lower_hebrew_scrambled"})
    four = row(0, "fs_merge", {task: [1, 1, 0, 0] for task in "abcd"})
    rows.append({**four, "group": "four_alphabets", "sources": dict.fromkeys("abcd", 0.625)})
    rows.append(row(0, "fs_merge", {"a": [1, 1, 0, 0], "b": [1, 1, 0, 0]}))
    rows.append({**rows[-1], "group": "symbols_lower"})
    table.write_results(rows, tmp_path)
    lines = (tmp_path / "quality.md").read_text().splitlines()
    assert "Made with torch 2.1, timm 1.0." in lines
    assert any(
        line.startswith("| lower_hebrew | 50 | 2 | 99, met | 100.00 [100.0, 100.0] | kd +25.0 [-5.0, +55.0] |")
        and line.endswith("| -20.0 | -15.0 |")
        for line in lines
    )
    assert any(line.startswith("| four_alphabets | 50 | 1 | 97, missed | 80.00 [") for line in lines)
    assert "| mean of 2 pairs | 50 | | 99, missed | 81.25 | | | |" in lines
    assert any(line.startswith("| digits_mlp_pair | 50 | 1 | - | 62.50 [") for line in lines)
    [scrambled] = [line for line in lines if line.startswith(("| 50 | kd |", "| 50 | fs_merge |"))]
    assert scrambled.startswith("| 50 | kd | 1 | -25.0 [")
    order = [line.split(" |")[0] for line in lines if line.startswith(("| kd", "| fs_merge"))]
    assert order == [
        f"| {m}" for m in ("fs_merge", "fs_merge", "fs_merge_paper", "kd", "fs_merge", "kd", "fs_merge")
    ]
