"""What a merge would be, from headers: table, mismatches, similarity, predictions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import merge
from fsmerge_cli.checkpoints import weight_cosine
from fsmerge_cli.checkpoints.files import DTYPES
from fsmerge_cli.checkpoints.headers import headers
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.weight_cosine import BUDGET
from fsmerge_cli.cli import main
from fsmerge_cli.cli.check_command import HELP
from fsmerge_cli.common.errors import ConfigError, MismatchError, SourceError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs import estimate
from fsmerge_cli.runs.check import inspect
from fsmerge_cli.runs.request import Request, request
from tests.evaluation.test_certificates import written
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

pytestmark = pytest.mark.full

Entries = list[dict[str, str]]


def asked(entries: Entries, method: str = "average") -> Request:
    return request(entries, method, None, Hardware(device="cpu"), 0, overwrite=False)


def entries(folder: Path, *sources: Source) -> Entries:
    return [written(folder, source) for source in sources]


@pytest.fixture
def vits(tmp_path: Path) -> Entries:
    return entries(tmp_path, *(vit_source("class token", seed) for seed in (1, 2)))


@pytest.fixture
def mlps(tmp_path: Path) -> Entries:
    return entries(tmp_path, *(mlp_source(name, [40, 40], seed) for seed, name in enumerate("ab")))


def test_the_rows_say_what_the_files_hold(vits: Entries, tmp_path: Path) -> None:
    row = inspect(asked(vits)).rows[0]
    source = load(SourceSpec(**vits[0]))  # type: ignore[arg-type]
    assert source.head is not None
    assert source.head.bias is not None
    held = [*source.weights.values(), source.head.weight, source.head.bias]
    assert (row.name, row.architecture, row.dtype) == ("s1", "vit_tiny_patch16_224", "float32")
    assert (row.width, row.depth, row.heads, row.patch, row.classes) == (12, 2, 3, (4, 4), 3)
    assert (row.mean, row.std) == ((0.0, 0.0), (1.0, 1.0))
    assert row.parameters == sum(t.numel() for t in held)
    assert row.bytes == (tmp_path / "s1/model.safetensors").stat().st_size
    assert row.state == vits[0]["checkpoint"]


def test_an_mlp_has_neither_heads_nor_patches(mlps: Entries) -> None:
    row = inspect(asked(mlps)).rows[1]
    assert (row.name, row.architecture, row.width, row.depth) == ("b", "mlp", 40, 2)
    assert (row.heads, row.patch, row.classes) == (None, None, 3)


@pytest.mark.parametrize("kind", ["vits", "mlps"])
def test_headers_give_the_plan_of_a_full_load(kind: str, request: pytest.FixtureRequest) -> None:
    specs = [SourceSpec(**entry) for entry in request.getfixturevalue(kind)]
    stated = [own.source for own in headers(specs)]
    assert all(t.is_meta for source in stated for t in source.weights.values())
    assert compile_plan(stated) == compile_plan([load(spec) for spec in specs])


def test_a_normalisation_is_shown_and_folded_into_shapes(vits: Entries) -> None:
    given: Any = {**vits[0], "mean": (0.5, 0.4), "std": (0.2, 0.3)}
    row = inspect(asked([given, vits[1]])).rows[0]
    assert (row.mean, row.std) == ((0.5, 0.4), (0.2, 0.3))
    with pytest.raises(SourceError, match=r"std \[0\.0\] need 1 or 2 values each, std none of them 0"):
        inspect(asked([{**given, "std": (0.0,)}, vits[1]]))


def test_every_mismatch_is_said_at_once_and_is_that_of_a_run(tmp_path: Path) -> None:
    given = entries(tmp_path, mlp_source("a", [8, 8], 1), mlp_source("b", [8], 2, activation="tanh", norm="batch"))
    found = inspect(asked(given))
    assert [reason.partition(":")[0] for reason in found.reasons] == ["depth", "activation", "norm"]
    assert (found.methods, found.recommended, found.memory, found.similarity) == ((), None, None, None)
    with pytest.raises(MismatchError) as error:
        compile_plan([load(SourceSpec(**entry)) for entry in given])  # type: ignore[arg-type]
    assert error.value.reasons == found.reasons


def test_every_unreadable_file_is_named(mlps: Entries) -> None:
    files = [Path(entry["checkpoint"]) / "model.safetensors" for entry in mlps]
    for file in files:
        file.write_bytes(file.read_bytes()[:-8])
    messages = []
    for entry in mlps:
        with pytest.raises(SourceError) as error:
            load(SourceSpec(**entry))  # type: ignore[arg-type]
        messages.append(str(error.value))
    with pytest.raises(SourceError) as error:
        inspect(asked(mlps))
    assert str(error.value) == "\n".join(messages)


def test_a_changed_copy_is_near_and_another_seed_is_not(tmp_path: Path) -> None:
    first = mlp_source("a", [40, 40], 1)
    near = {name: t + 0.02 * t.std() * torch.ones_like(t) for name, t in first.weights.items()}
    copy = replace(first, name="copy", weights=near)
    given = entries(tmp_path, first, copy, mlp_source("c", [40, 40], 9))
    close = inspect(asked(given[:2]))
    assert close.similarity is not None
    assert 0.99 < close.similarity[0] < 1
    assert close.verdict == "the sources seem to share a parent: averaging will do"
    assert close.recommended == "method=average"
    both = inspect(asked(given))
    assert both.similarity is not None
    assert both.similarity[0] == close.similarity[0]
    assert abs(both.similarity[1]) < 0.1
    assert both.verdict == "the sources seem to share no parent: averaging will collapse"


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
    assert inspect(asked(legacy)).similarity == inspect(asked(mlps)).similarity
    assert inspect(asked([mlps[0], legacy[1]])).similarity == inspect(asked(mlps)).similarity
    models = ", ".join(f"{{name: {entry['name']}, checkpoint: {entry['checkpoint']}}}" for entry in legacy)
    code, out, err = check("method=average", models=f"models.sources=[{models}]")
    assert (code, err) == (0, "")
    assert f"a: {legacy[0]['checkpoint']}\n" in out
    assert "similarity to source 1: " in out


def test_at_most_a_megabyte_of_each_source_is_read(vits: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    original = weight_cosine._slice

    def counted(*given: Any) -> torch.Tensor:
        piece = original(*given)
        taken.append(piece.nbytes)
        return piece

    monkeypatch.setattr(weight_cosine, "_slice", counted)
    monkeypatch.setattr(weight_cosine, "BUDGET", 800)
    inspect(asked(vits))
    assert 0 < sum(taken) <= 2 * 800
    assert BUDGET == 1_000_000


@pytest.mark.parametrize("kind", ["vits", "mlps"])
def test_headers_only_reads_no_weight(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = request.getfixturevalue(kind)

    def read(*args: object) -> None:
        raise AssertionError("a weight was read")

    for name in ("checkpoints.files._tensor", "checkpoints.weight_cosine._slice", "checkpoints.open.file_sha256"):
        monkeypatch.setattr(f"fsmerge_cli.{name}", read)
    found = inspect(asked(given), headers_only=True)
    assert (found.reasons, found.similarity, found.verdict) == ((), None, None)
    with pytest.raises(AssertionError, match="a weight was read"):
        inspect(asked(given))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_types_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from fsmerge_cli.checkpoints.files import read_tensors

    save_file({"x": torch.zeros(2, 3, dtype=dtype)}, tmp_path / "x.safetensors")
    stated = read_tensors(tmp_path / "x.safetensors", "x", headers=True)[0]["x"]
    assert (stated.dtype, stated.shape, stated.is_meta) == (dtype, (2, 3), True)


def test_a_method_that_does_not_apply_says_why(tmp_path: Path) -> None:
    given = entries(tmp_path, mlp_source("a", [8, 8], 1), mlp_source("b", [6, 8], 2))
    found = {method.name: method.why_not for method in inspect(asked(given)).methods}
    width, images = "widths or numbers of heads differ", "needs unlabelled images (data=...)"
    wide = ("activation_matching", "regmean", "regmean_pp", "slerp", "zipit")
    assert found == {"average": None, "fs_merge": images, "kd": images, **dict.fromkeys(wide, width)}


def test_methods_that_need_one_width_are_those_that_say_so(make_problem: Callable[..., Any]) -> None:
    problem = make_problem([mlp_source("a", [8, 8], 1), mlp_source("b", [6, 8], 2)])
    refusing = set()
    for name in METHODS.keys() - {"kd", "fs_merge"}:
        try:
            METHODS[name](name=name).fit(problem)
        except ConfigError:
            refusing.add(name)
    assert refusing == {name for name, method in METHODS.items() if method.one_width}


# The command


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
    assert re.search(r"similarity to source 1: -?0\.\d\d; the sources seem to share no parent", out)
    assert "methods that apply: average, slerp\n" in out
    assert "method=average as asked: about " in out


@pytest.mark.full
def test_a_mismatch_is_shown_under_the_table_with_exit_code_2(check: Callable[..., Any]) -> None:
    code, out, err = check("method=average", "models.sources.1.name=s1")
    assert code == 2
    assert "s1: " in out
    assert err == (
        "fsmerge: error: these sources cannot be merged, for 1 reason:\n"
        "  - the task name 's1' is used 2 times; give each source a name of its own\n"
        "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other sources.\n"
    )


@pytest.mark.full
def test_an_embedded_source_is_not_trained(check: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = check("--json", models="+models=digits_mlp_pair")
    assert (code, err) == (0, "")
    assert [row["state"] for row in json.loads(out)["rows"]] == ["trained on first use"] * 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.full
def test_an_embedded_source_in_the_cache_is_looked_at_there(check: Callable[..., Any], tmp_path: Path) -> None:
    from fsmerge_cli.checkpoints.embedded import cached, materialise

    short = [f"models.sources.{i}.recipe.steps=1" for i in (0, 1)]
    arguments = ("--json", *short)
    _, out, _ = check(*arguments, models="+models=digits_mlp_pair")
    unseen = json.loads(out)
    recipes = request("digits_mlp_pair", "average", None, "cpu", 0, overwrite=False).sources
    specs = [replace(spec, recipe=replace(spec.recipe, steps=1)) for spec in recipes if spec.recipe]
    for spec in specs:
        assert cached(spec) is None
        materialise(spec, lambda event: None)
    _, out, _ = check(*arguments, models="+models=digits_mlp_pair")
    found = json.loads(out)
    assert [row["state"] for row in found["rows"]] == ["cached"] * 2
    assert unseen["similarity"] is None
    assert abs(found["similarity"][0]) < 0.5
    told = ("name", "architecture", "width", "classes", "parameters", "dtype")
    assert [[row[key] for key in told] for row in found["rows"]] == [
        [row[key] for key in told] for row in unseen["rows"]
    ]
    folder = cached(specs[0])
    assert folder is not None
    (folder / "model.safetensors").write_bytes(b"damaged")
    code, out, err = check(*arguments, models="+models=digits_mlp_pair")
    assert (code, err) == (0, "")
    assert [row["state"] for row in json.loads(out)["rows"]] == ["trained on first use", "cached"]


def test_a_sweep_is_refused(check: Callable[..., Any]) -> None:
    assert check("--multirun", "seed=0,1") == (
        2,
        "",
        "fsmerge: error: fsmerge check looks at one merge. Leave out --multirun and give every key one value.\n",
    )
    assert "--headers-only" in HELP


def test_a_merge_looks_at_the_headers_before_it_reads_or_trains(
    vits: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))
    embedded = {
        "name": "s1",
        "arch": {"family": "mlp", "input_size": [1, 8, 8], "widths": [8]},
        "labels": ["0", "1"],
        "recipe": {"data": "digits", "seed": 1},
    }
    with pytest.raises(MismatchError) as error:
        merge([vits[0], embedded], method="average", output=tmp_path / "out")
    assert error.value.reasons == (
        "the task name 's1' is used 2 times; give each source a name of its own",
        "'s1' is a vit, 's1' a mlp",
    )
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "out").exists()
