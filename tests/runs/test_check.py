"""`fsmerge check`, inspection: table, mismatches, weight similarity, methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fsmerge_cli import merge
from fsmerge_cli.checkpoints import weight_cosine
from fsmerge_cli.checkpoints.files import DTYPES
from fsmerge_cli.checkpoints.headers import read_headers
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.weight_cosine import BUDGET
from fsmerge_cli.common.errors import ConfigError, MismatchError, SourceError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.pleas import PLeaS
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.check import inspect
from fsmerge_cli.runs.recommendation import recommend
from tests.support.checks import Entries, check_request, write_entries
from tests.support.common_initialisation import NAMES
from tests.support.encoders import encoder_source
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

pytestmark = pytest.mark.full


def test_the_rows_describe_the_files(vits: Entries, tmp_path: Path) -> None:
    row = inspect(check_request(vits)).rows[0]
    source = load(SourceSpec(**vits[0]))  # type: ignore[arg-type]
    assert source.head is not None
    assert source.head.bias is not None
    tensors = [*source.weights.values(), source.head.weight, source.head.bias]
    assert (row.name, row.architecture, row.dtype) == ("s1", "vit_tiny_patch16_224", "float32")
    assert (row.width, row.depth, row.heads, row.patch, row.classes) == (12, 2, 3, (4, 4), 3)
    assert (row.mean, row.std) == ((0.0, 0.0), (1.0, 1.0))
    assert row.parameters == sum(t.numel() for t in tensors)
    assert row.bytes == (tmp_path / "s1/model.safetensors").stat().st_size
    assert row.state == vits[0]["checkpoint"]


def test_an_mlp_has_neither_heads_nor_patches(mlps: Entries) -> None:
    row = inspect(check_request(mlps)).rows[1]
    assert (row.name, row.architecture, row.width, row.depth) == ("b", "mlp", 40, 2)
    assert (row.heads, row.patch, row.classes) == (None, None, 3)


@pytest.mark.parametrize("kind", ["vits", "mlps"])
def test_headers_give_the_plan_of_a_full_load(kind: str, request: pytest.FixtureRequest) -> None:
    specs = [SourceSpec(**entry) for entry in request.getfixturevalue(kind)]
    from_headers = [own.source for own in read_headers(specs)]
    assert all(t.is_meta for source in from_headers for t in source.weights.values())
    assert compile_plan(from_headers) == compile_plan([load(spec) for spec in specs])


def test_a_normalisation_is_shown_and_folded_into_shapes(vits: Entries) -> None:
    given: Any = {**vits[0], "mean": (0.5, 0.4), "std": (0.2, 0.3)}
    row = inspect(check_request([given, vits[1]])).rows[0]
    assert (row.mean, row.std) == ((0.5, 0.4), (0.2, 0.3))
    with pytest.raises(SourceError, match=r"std \[0\.0\] need 1 or 2 values each, every std above 0"):
        inspect(check_request([{**given, "std": (0.0,)}, vits[1]]))


def test_every_mismatch_is_reported_at_once_as_in_a_merge(tmp_path: Path) -> None:
    given = write_entries(
        tmp_path, mlp_source("a", [8, 8], 1), mlp_source("b", [8], 2, activation="tanh", norm="batch")
    )
    found = inspect(check_request(given))
    assert [reason.partition(":")[0] for reason in found.reasons] == ["depth", "activation", "norm"]
    assert (found.methods, found.recommended, found.memory, found.similarity) == ((), None, None, None)
    with pytest.raises(MismatchError) as error:
        compile_plan([load(SourceSpec(**entry)) for entry in given])  # type: ignore[arg-type]
    assert error.value.reasons == found.reasons


def test_every_unreadable_file_is_reported(mlps: Entries) -> None:
    files = [Path(entry["checkpoint"]) / "model.safetensors" for entry in mlps]
    for file in files:
        file.write_bytes(file.read_bytes()[:-8])
    messages = []
    for entry in mlps:
        with pytest.raises(SourceError) as error:
            load(SourceSpec(**entry))  # type: ignore[arg-type]
        messages.append(str(error.value))
    with pytest.raises(SourceError) as error:
        inspect(check_request(mlps))
    assert str(error.value) == "\n".join(messages)


def test_a_perturbed_copy_is_similar_and_another_seed_is_not(tmp_path: Path) -> None:
    first = mlp_source("a", [40, 40], 1)
    near = {name: t + 0.02 * t.std() * torch.ones_like(t) for name, t in first.weights.items()}
    copy = replace(first, name="copy", weights=near)
    given = write_entries(tmp_path, first, copy, mlp_source("c", [40, 40], 9))
    pair = inspect(check_request(given[:2]))
    assert pair.similarity is not None
    assert 0.99 < pair.similarity[0] < 1
    assert pair.verdict == "the sources seem to share a pretrained initialisation: averaging should work"
    assert pair.recommended == "method=average"
    all_three = inspect(check_request(given))
    assert all_three.similarity is not None
    assert all_three.similarity[0] == pair.similarity[0]
    assert abs(all_three.similarity[1]) < 0.1
    assert (
        all_three.verdict
        == "the sources seem to share no pretrained initialisation: averaging is expected to fail"
    )


def test_the_closed_form_is_recommended_where_there_are_images_and_it_exists() -> None:
    vits = compile_plan([vit_source("class token", seed) for seed in (1, 2)])
    berts = compile_plan([encoder_source("BERT", seed) for seed in (1, 2)])
    unknown = replace(berts, family=replace(berts.family, blocks=lambda module: ()))
    with_images: Any = SimpleNamespace(data=object())
    without: Any = SimpleNamespace(data=None)
    solved = "least squares, without a training; with one: method=fs_merge"
    assert recommend(vits, [0.0], with_images, False) == ("method=fs_closed_form", solved)
    assert recommend(vits, [0.9], with_images, True) == (
        "method=fs_closed_form",
        f"{solved}; from the pretrained weights: method=tsv",
    )
    assert recommend(berts, [0.0], with_images, False) == ("method=fs_closed_form", solved)
    assert recommend(unknown, [0.0], with_images, False) == (
        "method=fs_merge",
        "there is no closed form for these sources",
    )
    assert recommend(vits, [0.0], without, False) == (
        "method=average",
        "better methods need images: pass data=...",
    )


def test_at_most_a_megabyte_of_each_source_is_read(vits: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes: list[int] = []
    original = weight_cosine._slice

    def counted(*given: Any) -> torch.Tensor:
        piece = original(*given)
        read_bytes.append(piece.nbytes)
        return piece

    monkeypatch.setattr(weight_cosine, "_slice", counted)
    monkeypatch.setattr(weight_cosine, "BUDGET", 800)
    inspect(check_request(vits))
    assert 0 < sum(read_bytes) <= 2 * 800
    assert BUDGET == 1_000_000


@pytest.mark.parametrize("kind", ["vits", "mlps"])
def test_headers_only_reads_no_weight(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = request.getfixturevalue(kind)

    def read(*args: object) -> None:
        raise AssertionError("a weight was read")

    for name in (
        "checkpoints.files._tensor",
        "checkpoints.weight_cosine._slice",
        "checkpoints.weights.file_sha256",
    ):
        monkeypatch.setattr(f"fsmerge_cli.{name}", read)
    found = inspect(check_request(given), headers_only=True)
    assert (found.reasons, found.similarity, found.verdict) == ((), None, None)
    with pytest.raises(SourceError, match="a weight was read"):
        inspect(check_request(given))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_headers_give_the_dtype_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from fsmerge_cli.checkpoints.files import read_tensors

    save_file({"x": torch.zeros(2, 3, dtype=dtype)}, tmp_path / "x.safetensors")
    from_headers = read_tensors(tmp_path / "x.safetensors", "x", headers=True)[0]["x"]
    assert (from_headers.dtype, from_headers.shape, from_headers.is_meta) == (dtype, (2, 3), True)


def test_a_method_that_does_not_apply_has_a_reason(tmp_path: Path) -> None:
    given = write_entries(tmp_path, mlp_source("a", [8, 8], 1), mlp_source("b", [6, 8], 2))
    found = {method.name: method.why_not for method in inspect(check_request(given)).methods}
    width, images = "widths or numbers of heads differ", "needs unlabelled images (data=...)"
    wide = (
        "activation_matching",
        "cca",
        "orthogonal_matching",
        "straight_through",
        "weight_matching",
        "pleas",
        "neuron_interpolation",
        "regmean",
        "regmean_pp",
        "slerp",
        "zipit",
        "fisher",
        *NAMES,
    )
    assert found == {
        "average": None,
        "ot_fusion": images,
        "fs_closed_form": images,
        "fs_merge": images,
        "kd": images,
        **dict.fromkeys(wide, width),
    }


def test_the_widths_of_pleas_speak_against_no_method(tmp_path: Path) -> None:
    given = write_entries(tmp_path, mlp_source("a", [8, 8], 1), mlp_source("b", [8, 8], 2))
    asked = replace(check_request(given), method=PLeaS(budget_flops=1.5))
    found = {method.name: method.why_not for method in inspect(asked).methods}
    assert {found[name] for name in ("pleas", "regmean", "zipit")} == {"needs unlabelled images (data=...)"}
    assert found["slerp"] is None


def test_one_width_is_set_for_the_methods_that_refuse_other_widths(make_problem: Callable[..., Any]) -> None:
    problem = make_problem([mlp_source("a", [8, 8], 1), mlp_source("b", [6, 8], 2)])
    refusing = set()
    for name in METHODS.keys() - {"kd", "fs_merge"}:
        try:
            METHODS[name](name=name).fit(problem)
        except ConfigError:
            refusing.add(name)
    assert refusing == {name for name, method in METHODS.items() if method.one_width}


def test_a_merge_checks_the_headers_before_it_reads_or_trains(
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
        "the task name 's1' is used 2 times; give each source a unique name",
        "'s1' is a vit, 's1' a mlp",
    )
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "out").exists()
