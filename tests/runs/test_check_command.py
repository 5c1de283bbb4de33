"""`fsmerge check`, the command: JSON, table, exit codes, embedded sources."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.cli import main
from fsmerge_cli.cli.check_command import HELP
from fsmerge_cli.runs import estimate
from fsmerge_cli.runs.check import inspect
from fsmerge_cli.runs.request import request
from tests.support.checks import Entries, check_request

pytestmark = pytest.mark.full


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_legacy_files_are_compared_like_others(suffix: str, mlps: Entries, check: Callable[..., Any]) -> None:
    from safetensors.torch import load_file

    legacy = []
    for entry in mlps:
        folder = Path(entry["checkpoint"])
        heads = load_file(folder / "heads.safetensors")
        own = {f"head.{n.rpartition('.')[2]}": t for n, t in heads.items()}
        torch.save({"state_dict": {**load_file(folder / "model.safetensors"), **own}}, folder / f"weights{suffix}")
        legacy.append({**entry, "checkpoint": str(folder / f"weights{suffix}")})
    assert inspect(check_request(legacy)).similarity == inspect(check_request(mlps)).similarity
    assert inspect(check_request([mlps[0], legacy[1]])).similarity == inspect(check_request(mlps)).similarity
    models = ", ".join(f"{{name: {entry['name']}, checkpoint: {entry['checkpoint']}}}" for entry in legacy)
    code, out, err = check("method=average", models=f"models.sources=[{models}]")
    assert (code, err) == (0, "")
    assert f"a: {legacy[0]['checkpoint']}\n" in out
    assert "similarity to source 1: " in out


@pytest.fixture
def check(vits: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., Any]:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))
    models = [f"{{name: {e['name']}, checkpoint: {e['checkpoint']}}}" for e in vits]

    def run(*arguments: str, models: str = f"+models.sources=[{', '.join(models)}]") -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["check", models, "hardware=cpu", *arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.mark.full
def test_json_is_the_inspection_and_nothing_is_written(check: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = check("method=average", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [row["name"] for row in found["rows"]] == ["s1", "s2"]
    assert (found["reasons"], found["method"], found["recommended"]) == ([], "average", "method=average")
    assert found["memory"] > estimate.resident() / 2
    assert found["seconds"] > 0
    assert list((tmp_path / "work").iterdir()) == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.full
def test_the_table_and_the_lines_below_it(check: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = check("method=average")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["s1"], ["s2"])]
    assert [row[1:9] for row in rows] == [["vit_tiny_patch16_224", *"12 2 3 4x4 3 none float32".split()]] * 2  # noqa: SIM905
    assert f"s1: {tmp_path}/s1\n" in out
    assert re.search(r"similarity to source 1: -?0\.\d\d; the sources seem to share no pretrained init", out)
    assert "methods that apply: average, slerp, weight_matching\n" in out
    assert "estimate for method=average: about " in out


@pytest.mark.full
def test_a_mismatch_is_shown_under_the_table_with_exit_code_2(check: Callable[..., Any]) -> None:
    code, out, err = check("method=average", "models.sources.1.name=s1")
    assert code == 2
    assert "s1: " in out
    assert err == (
        "fsmerge: error: these sources cannot be merged, for 1 reason:\n"
        "  - the task name 's1' is used 2 times; give each source a unique name\n"
        "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other sources.\n"
    )


@pytest.mark.full
def test_an_embedded_source_is_not_trained(check: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = check("--json", models="+models=digits_mlp_pair")
    assert (code, err) == (0, "")
    assert [row["state"] for row in json.loads(out)["rows"]] == ["trained on first use"] * 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.full
def test_an_embedded_source_in_the_cache_is_inspected_there(check: Callable[..., Any], tmp_path: Path) -> None:
    from fsmerge_cli.checkpoints.embedded import cached_folder, ensure_trained

    short = [f"models.sources.{i}.recipe.steps=1" for i in (0, 1)]
    arguments = ("--json", *short)
    _, out, _ = check(*arguments, models="+models=digits_mlp_pair")
    unseen = json.loads(out)
    recipes = request("digits_mlp_pair", "average", None, "cpu", 0, overwrite=False).sources
    specs = [replace(spec, recipe=replace(spec.recipe, steps=1)) for spec in recipes if spec.recipe]
    for spec in specs:
        assert cached_folder(spec) is None
        ensure_trained(spec, lambda event: None)
    _, out, _ = check(*arguments, models="+models=digits_mlp_pair")
    found = json.loads(out)
    assert [row["state"] for row in found["rows"]] == ["cached"] * 2
    assert unseen["similarity"] is None
    assert abs(found["similarity"][0]) < 0.5
    shown = ("name", "architecture", "width", "classes", "parameters", "dtype")
    assert [[row[key] for key in shown] for row in found["rows"]] == [
        [row[key] for key in shown] for row in unseen["rows"]
    ]
    folder = cached_folder(specs[0])
    assert folder is not None
    (folder / "model.safetensors").write_bytes(b"damaged")
    code, out, err = check(*arguments, models="+models=digits_mlp_pair")
    assert (code, err) == (0, "")
    assert [row["state"] for row in json.loads(out)["rows"]] == ["trained on first use", "cached"]


def test_a_sweep_is_refused(check: Callable[..., Any]) -> None:
    assert check("--multirun", "seed=0,1") == (
        2,
        "",
        "fsmerge: error: fsmerge check inspects one merge. Leave out --multirun and give every key one value.\n",
    )
    assert "--headers-only" in HELP


@pytest.mark.parametrize("more", [(), ("--headers-only",), ("--json",)])
def test_without_data_the_sources_are_reported_and_the_end_is_that_of_merge(
    more: tuple[str, ...], check: Callable[..., Any], capsys: Any
) -> None:
    code, out, err = check("method=kd", *more)
    assert (code, "no estimate without images (data=...)" in out, "vit" in out) == (2, True, True)
    models = "+models=digits_mlp_pair"
    assert main(["merge", models, "data=null", "method=kd"]) == 2
    assert capsys.readouterr().err == err
    assert check("method=average", *more)[::2] == (0, "")
