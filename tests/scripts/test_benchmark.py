"""The quality benchmark's own arithmetic; its runs are `make quality`."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.stats import norm, t

from fsmerge_cli.alignment.matching import aligned
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods import Problem
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from scripts.benchmark import intervals
from scripts.benchmark import picture as picture_module
from scripts.benchmark import run as benchmark
from scripts.benchmark import sources as sources_module
from scripts.benchmark import table as table_module
from tests.support.sources import random_images
from tests.support.vits import vit_source


@pytest.fixture
def scripts() -> tuple[ModuleType, ModuleType]:
    return sources_module, table_module


@pytest.fixture
def numbers(scripts: tuple[ModuleType, ModuleType]) -> ModuleType:
    return intervals


def row(seed: int, method: str, answers: dict[str, list[int]]) -> dict[str, Any]:
    bits = {t: base64.b64encode(np.packbits(np.array(a, bool)).tobytes()).decode() for t, a in answers.items()}
    shares = {task: sum(own) / len(own) for task, own in answers.items()}
    mean = sum(shares.values()) / len(shares)
    return {
        **{"group": "digits_mlp_pair", "images": "50", "method": method, "seed": seed, "overrides": []},
        **{"tasks": shares, "sources": dict.fromkeys(answers, 0.8), "mean": mean},
        **{"counts": {task: len(own) for task, own in answers.items()}, "right": bits, "steps": 3, "seconds": 1.5},
        "versions": {"torch": "2.1", "timm": "1.0"},
        **{"device": "one CPU thread", "sources_sha256": dict.fromkeys(answers, "0" * 64)},
        "joint": {"softmax": 0.5, "softmax_calibrated": 0.6},
        "ensemble_joint": {"softmax": 0.7, "softmax_calibrated": 0.75},
    }


def test_sources_of_a_shared_parent_are_trained_from_it_once(
    scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of them are kept as folders, which have labels themselves; a second call trains nothing."""
    sources, _ = scripts
    tuned: list[tuple[str, str]] = []
    monkeypatch.setattr(sources, "SOURCES", tmp_path / "kept")
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(sources, "materialise", lambda spec, progress: replace(spec, checkpoint="trained"))
    monkeypatch.setattr(
        sources, "finetune", lambda entry, output, **options: tuned.append((entry["checkpoint"], entry["task"]))
    )

    def keep(spec: SourceSpec, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()

    monkeypatch.setattr(sources, "_keep", keep)
    for _ in range(2):
        folder = sources.prepare(["hebrew_armenian_of_lower"])
    entries = yaml.safe_load((folder / "models/quality_hebrew_armenian_of_lower.yaml").read_text())["sources"]
    assert [entry["name"] for entry in entries] == ["hebrew", "armenian"]
    assert [set(entry) for entry in entries] == [{"name", "arch", "checkpoint"}] * 2
    kept = [str(tmp_path / "kept" / f"{name}_of_lower_96") for name in ("hebrew", "armenian")]
    assert [entry["checkpoint"] for entry in entries] == kept
    assert tuned == [(str(tmp_path / "kept/lower_96"), name) for name in ("hebrew", "armenian")]


def test_a_source_is_kept_in_half_precision(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    sources, _ = scripts
    source = vit_source("class token", 1)
    sources._write(tmp_path / "whole", source, source.weights)
    sources._keep(SourceSpec(source.name, checkpoint=str(tmp_path / "whole")), tmp_path / "kept")
    stored = load_file(tmp_path / "kept/model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    again = load(SourceSpec(source.name, checkpoint=str(tmp_path / "kept")))
    assert source.head is not None
    assert again.head is not None
    assert again.head.labels == source.head.labels
    torch.testing.assert_close(again.weights, source.weights, atol=1e-3, rtol=1e-3)


def test_scrambled_weights_are_another_basis_of_the_same_function(scripts: tuple[ModuleType, ModuleType]) -> None:
    sources, _ = scripts
    source = vit_source("class token", 1)
    weights = sources.scramble(source, generator(0, "x"))
    images = torch.rand(5, *source.arch.input_size, generator=torch.Generator().manual_seed(0))
    before, after = network(source)(images), network(replace(source, weights=weights))(images)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    changed = [n for n, t in weights.items() if not torch.allclose(t, source.weights[n], atol=1e-3)]
    assert {"blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight"} <= set(changed)
    assert not [n for n in changed if "norm" in n or n.startswith("patch_embed")]


def test_matching_undoes_the_order_of_hidden_units_and_heads(scripts: tuple[ModuleType, ModuleType]) -> None:
    """Of the scrambling, the permutations; rotations inside a head are beyond any permutation."""
    from fsmerge_cli.alignment.permutation import permute, random_permutations

    source = replace(vit_source("class token", 1), name="a")
    plan = compile_plan([source, replace(source, name="b")])
    shuffled = permute(plan, source.weights, random_permutations(plan, 1, generator(0, "order")))
    pair = [source, replace(source, name="b", weights=shuffled)]
    images = random_images(2, 24, source.arch.input_size)
    found = aligned(Problem(compile_plan(pair), pair, images), "activations")
    for name, tensor in source.weights.items():
        torch.testing.assert_close(found.problem.sources[1].weights[name], tensor)


def test_answers_come_back_from_their_bits(numbers: ModuleType) -> None:
    given = {"a": [1, 0, 1, 1, 0, 0, 0, 1, 1], "b": [0, 1]}
    assert {t: own.tolist() for t, own in numbers.answers(row(0, "kd", given)).items()} == given


def test_the_paired_difference_is_that_of_the_images_seeds_have_in_common(numbers: ModuleType) -> None:
    def paired(found: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
        text: str = numbers.text_of(numbers.difference(found, others))
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


def test_the_table_and_the_picture_are_written(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, table = scripts
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


def test_a_method_has_the_same_mark_in_every_panel_and_a_variant_another(
    scripts: tuple[ModuleType, ModuleType],
) -> None:
    picture = picture_module
    styles = [picture._style(method) for method in picture.METHODS]
    assert len({(style["color"], style["marker"]) for style in styles}) == len(picture.METHODS)
    assert picture._style("kd_adamw") == picture.VARIANT
    assert picture.VARIANT not in styles


def test_rows_of_other_options_are_no_further_seeds(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    _, table = scripts
    rows = [row(s, "kd", {"a": [1, 1, 0, 0]}) for s in (0, 1)]
    rows[1]["overrides"] = ["method.steps=3"]
    with pytest.raises(SystemExit, match="the rows of kd were not made with the same options"):
        table.write_results(rows, tmp_path)


def test_rows_of_other_sources_do_not_stand_in_one_table(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    _, table = scripts
    rows = [row(0, method, {"a": [1, 1, 0, 0]}) for method in ("kd", "fs_merge")]
    rows[1]["sources_sha256"] = {"a": "1" * 64}
    with pytest.raises(SystemExit, match="the rows were not made of the same sources"):
        table.write_results(rows, tmp_path)


def test_rows_of_other_sources_are_refused_before_anything_runs(
    scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources, _ = scripts
    quality = benchmark
    old = {**row(0, "kd", {"lower": [1, 0], "hebrew": [1, 1]}), "group": "lower_hebrew"}
    quality.add(old, tmp_path)
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(sources, "SOURCES", tmp_path / "kept")
    for name in ("lower", "hebrew"):
        (tmp_path / f"kept/{name}_96").mkdir(parents=True)
        (tmp_path / f"kept/{name}_96/model.safetensors").write_text(name)
    monkeypatch.setattr(quality, "measure", lambda *_: pytest.fail("something ran"))
    monkeypatch.setattr("sys.argv", ["benchmark", "--groups=lower_hebrew", f"--results={tmp_path}"])
    with pytest.raises(SystemExit) as refused:
        quality.main()
    assert str(refused.value) == (
        f"{tmp_path / 'quality.jsonl'} has rows of lower_hebrew that were made of other sources (lower, hebrew): "
        "such networks depend on the machine that trains them. --results=FOLDER measures all of it anew."
    )
    with pytest.raises(SystemExit, match="made of other sources"):
        quality.add({**old, "sources_sha256": sources.fingerprints("lower_hebrew")}, tmp_path)
    assert len(list(quality.rows(tmp_path))) == 1


def test_what_of_the_whole_matrix_has_no_row_is_said(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    _, table = scripts
    blocks = [
        ("digits_mlp_pair", "50", ("kd", "average"), (0,)),
        ("digits_mlp_pair", "50", ("kd", "average"), (1,)),
        ("lower_hebrew", "50", ("kd",), (0, 1)),
        ("lower_hebrew", "16", ("kd",), (0,)),
    ]
    right = {"low": [1, 0], "high": [1, 1]}
    there = [row(seed, "average", right) for seed in (0, 1)] + [row(1, "kd", right)]
    there.append({**row(0, "kd", right), "group": "lower_hebrew", "images": "16"})
    table.write_results(there, tmp_path, blocks=blocks)
    text = (tmp_path / "quality.md").read_text()
    assert text.split("## Not measured yet\n")[1].splitlines()[-3:] == [
        "| images | method | groups with their seeds |",
        "|---|---|---|",
        "| 50 | kd | digits_mlp_pair 1, lower_hebrew 0 |",
    ]
    table.write_results(there, tmp_path, blocks=blocks[3:])
    assert "Not measured" not in (tmp_path / "quality.md").read_text()


def test_without_calibration_there_is_no_number(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, table = scripts
    found = row(0, "kd", {"a": [1, 1, 0, 0]})
    for key in ("joint", "ensemble_joint"):
        del found[key]["softmax_calibrated"]
    table.write_results([{**found, "images": "generated"}], tmp_path)
    text = (tmp_path / "quality.md").read_text()
    assert "ensemble joint 70.0, calibrated - %." in text
    assert "| - | 50.0 | - | 3 | 2 | one CPU thread |" in text


def test_goals_and_drops_are_read_off_the_rows(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, table = scripts
    right = {"kd": [1, 1, 1, 0], "fs_merge": [1, 1, 1, 1], "fs_merge_paper": [1, 0, 0, 0]}
    rows = [row(s, m, {"a": own, "b": own}) for m, own in right.items() for s in (0, 1)]
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
    [drop] = [line for line in lines if line.startswith(("| 50 | kd |", "| 50 | fs_merge |"))]
    assert drop.startswith("| 50 | kd | 1 | -25.0 [")
    order = [line.split(" |")[0] for line in lines if line.startswith(("| kd", "| fs_merge"))]
    assert order == [
        f"| {m}" for m in ("fs_merge", "fs_merge", "fs_merge_paper", "kd", "fs_merge", "kd", "fs_merge")
    ]


def test_only_what_has_no_row_is_measured(
    scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One `fsmerge merge --multirun` for the methods that lack the same seeds; a second call runs nothing."""
    quality = benchmark
    commands = []

    def merge(arguments: list[str]) -> int:
        keys = dict(part.split("=", 1) for part in arguments if "=" in part)
        commands.append((keys["method"], keys["seed"]))
        jobs = Path(keys["hydra.sweep.dir"]) / "jobs"
        jobs.mkdir(parents=True)
        pairs = [(m, int(s)) for m in keys["method"].split(",") for s in keys["seed"].split(",")]
        for number, pair in enumerate(pairs):
            (jobs / f"{number}.json").write_text(json.dumps({"folder": f"{pair[0]}-{pair[1]}"}))
        return 0

    def read(folder: Path, group: str, images: str, name: str, overrides: list[str]) -> dict[str, Any]:
        return row(int(folder.name.split("-")[1]), name, {"a": [1, 1, 0, 0]})

    prepared: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality, "fsmerge", merge)
    monkeypatch.setattr(quality, "row", read)
    monkeypatch.setattr(quality, "prepare", lambda names: prepared.append(names) or tmp_path)
    asked = ["--groups=digits_mlp_pair", "--results=here"]
    for more in (["--methods=kd", "--seeds=1"], ["--methods=average,kd,fs_merge", "--seeds=0,1"], []):
        monkeypatch.setattr("sys.argv", ["benchmark", *asked, *(more or ["--methods=kd,fs_merge", "--seeds=0,1"])])
        quality.main()
    assert commands == [("kd", "1"), ("average,fs_merge", "0,1"), ("kd", "0")]
    assert prepared == [["digits_mlp_pair"], ["digits_mlp_pair"], []]
    lines = [json.loads(line) for line in Path("here/quality.jsonl").read_text().splitlines()]
    assert [(line["method"], line["seed"]) for line in lines] == [
        *(("kd", 1), ("average", 0), ("average", 1), ("fs_merge", 0), ("fs_merge", 1), ("kd", 0))
    ]
