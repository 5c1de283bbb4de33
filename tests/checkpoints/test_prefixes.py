from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.check import inspect
from fsmerge_cli.runs.request import request
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

PREFIXES = ["module.", "model.", "backbone.", "_orig_mod.", "encoder.", "module._orig_mod.model."]


def parts(source: Source) -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, Any]]:
    assert source.head is not None
    assert source.head.bias is not None
    arch = {"family": "mlp", "input_size": (1, 4, 4), "widths": (6, 5)}
    if source.family.name == "vit":
        arch = {"family": "vit", "name": source.arch.name, "args": source.arch.args}
    return dict(source.weights), source.head.weight, source.head.bias, arch


@pytest.fixture(params=["mlp", "vit"])
def source(request: pytest.FixtureRequest) -> Source:
    return mlp_source("a", [6, 5], 3) if request.param == "mlp" else vit_source("class token", 1)


def same(found: Source, source: Source) -> bool:
    equal = [torch.equal(found.weights[n], t) for n, t in source.weights.items()]
    return found.weights.keys() == source.weights.keys() and all(equal)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_removed(prefix: str, source: Source, tmp_path: Path) -> None:
    weights, weight, bias, arch = parts(source)
    everything = {**weights, "head.weight": weight, "head.bias": bias}
    save_file({f"{prefix}{n}": t for n, t in everything.items()}, tmp_path / "x.safetensors")
    found = load(SourceSpec("a", mean=(0.0,), std=(1.0,), arch=arch, checkpoint=str(tmp_path / "x.safetensors")))
    assert same(found, source)
    assert found.head is not None
    assert torch.equal(found.head.weight, weight)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("prefix", "head"),
    [("backbone.", "head"), ("backbone.", "classifier"), ("model.backbone.", "model.fc"), ("vit.", "linear")],
)
def test_a_head_next_to_a_wrapped_backbone_is_its_head(
    prefix: str, head: str, source: Source, tmp_path: Path
) -> None:
    weights, weight, bias, arch = parts(source)
    tensors = {**{f"{prefix}{n}": t for n, t in weights.items()}, f"{head}.weight": weight, f"{head}.bias": bias}
    save_file({**tensors, "criterion.weight": torch.ones(3)}, tmp_path / "x.safetensors")
    found = load(SourceSpec("a", mean=(0.0,), std=(1.0,), arch=arch, checkpoint=str(tmp_path / "x.safetensors")))
    assert same(found, source)
    assert found.head is not None
    assert found.head.bias is not None
    assert torch.equal(found.head.weight, weight)
    assert torch.equal(found.head.bias, bias)
    assert found.notes == (f"'a': the weights under '{prefix}' were used; ignored: criterion.weight",)


def test_a_head_of_any_name_is_used_if_selected(tmp_path: Path) -> None:
    weights, weight, _, arch = parts(mlp_source("a", [6, 5], 3))
    tensors = {f"net.{n}": t for n, t in weights.items()}
    save_file({**tensors, "top.weight": weight}, tmp_path / "x.safetensors")
    spec = SourceSpec(
        "a", mean=(0.0,), std=(1.0,), arch=arch, checkpoint=str(tmp_path / "x.safetensors"), head="top"
    )
    found = load(spec)
    assert found.head is not None
    assert torch.equal(found.head.weight, weight)
    assert found.head.bias is None


@pytest.mark.parametrize("outer", ["fc", "head"])
def test_a_head_inside_the_backbone_does_not_hide_the_one_next_to_it(
    outer: str, source: Source, tmp_path: Path
) -> None:
    weights, weight, bias, arch = parts(source)
    left = {"head.weight": torch.zeros(10, weight.shape[1]), "head.bias": torch.zeros(10)}
    tensors = {f"backbone.{n}": t for n, t in {**weights, **left}.items()}
    save_file({**tensors, f"{outer}.weight": weight, f"{outer}.bias": bias}, tmp_path / "x.safetensors")
    spec = SourceSpec("a", mean=(0.0,), std=(1.0,), arch=arch, checkpoint=str(tmp_path / "x.safetensors"))
    with pytest.raises(SourceError) as error:
        load(spec)
    assert str(error.value) == (
        f"source 'a': {tmp_path}/x.safetensors has 2 heads: backbone.head, {outer}. Choose the head of this "
        "task: models.sources.N.head=NAME"
    )
    for name, own in ((outer, weight), ("backbone.head", left["head.weight"])):
        found = load(replace(spec, head=name))
        assert same(found, source)
        assert found.head is not None
        assert torch.equal(found.head.weight, own)


@pytest.mark.parametrize(
    ("ordinary", "averaged"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "ema_net")],
)
def test_averaged_weights_are_used_if_requested(ordinary: str, averaged: str, tmp_path: Path) -> None:
    plain, ema = mlp_source("a", [6, 5], 3), mlp_source("a", [6, 5], 4)
    content = {ordinary: dict(plain.weights), averaged: dict(ema.weights), "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "x.pt")
    spec = SourceSpec("a", mean=(0.0,), std=(1.0,), arch=parts(plain)[3], checkpoint=str(tmp_path / "x.pt"))
    found = load(spec)
    assert same(found, plain)
    assert found.notes == (
        f"'a': the weights under '{ordinary}.' were used, the EMA weights under '{averaged}.' were not "
        "(models.sources.N.ema=true uses them)",
    )
    for choice, expected in ((True, ema), (False, plain)):
        chosen = load(
            SourceSpec(spec.name, mean=(0.0,), std=(1.0,), arch=spec.arch, checkpoint=spec.checkpoint, ema=choice)
        )
        assert same(chosen, expected)
        assert chosen.notes == ()


def test_averaged_weights_without_others_are_used_and_reported(tmp_path: Path) -> None:
    source = mlp_source("a", [6, 5], 3)
    torch.save({"model_ema": {f"module.{n}": t for n, t in source.weights.items()}}, tmp_path / "x.pt")
    spec = SourceSpec("a", mean=(0.0,), std=(1.0,), arch=parts(source)[3], checkpoint=str(tmp_path / "x.pt"))
    found = load(spec)
    assert same(found, source)
    assert found.notes == ("'a': only EMA weights were found, and used ('model_ema.')",)
    with pytest.raises(SourceError) as error:
        load(SourceSpec("a", mean=(0.0,), std=(1.0,), arch=spec.arch, checkpoint=spec.checkpoint, ema=False))
    assert str(error.value) == (
        f"source 'a': {tmp_path}/x.pt contains no ordinary weights; models were found under 'model_ema.'. "
        "Pass models.sources.N.ema=true or null."
    )


def test_one_of_several_models_has_to_be_chosen(tmp_path: Path) -> None:
    student, teacher = mlp_source("a", [6, 5], 3), mlp_source("a", [6, 5], 4)
    tensors = {f"student.{n}": t for n, t in student.weights.items()}
    tensors |= {f"teacher.{n}": t for n, t in teacher.weights.items()}
    file = tmp_path / "x.safetensors"
    save_file(tensors, file)
    with pytest.raises(SourceError) as error:
        load(SourceSpec("a", mean=(0.0,), std=(1.0,), arch=parts(student)[3], checkpoint=str(file)))
    assert str(error.value) == (
        f"source 'a': {file} contains 2 models, under 'student.', 'teacher.'. "
        "Choose one with models.sources.N.prefix=..."
    )
    for prefix in ("teacher", "teacher."):
        found = load(
            SourceSpec("a", mean=(0.0,), std=(1.0,), arch=parts(student)[3], checkpoint=str(file), prefix=prefix)
        )
        assert same(found, teacher)
        assert found.notes == ()
    with pytest.raises(SourceError) as error:
        load(
            SourceSpec("a", mean=(0.0,), std=(1.0,), arch=parts(student)[3], checkpoint=str(file), prefix="techer")
        )
    assert str(error.value) == (
        f"source 'a': {file}: unknown prefix 'techer'. Did you mean 'teacher'? Available: student, teacher."
    )


def test_a_copy_inside_the_model_is_ignored(tmp_path: Path) -> None:
    plain, ema = mlp_source("a", [6, 5], 3), mlp_source("a", [6, 5], 4)
    tensors = {f"model.{n}": t for n, t in plain.weights.items()}
    save_file({**tensors, **{f"model.ema.{n}": t for n, t in ema.weights.items()}}, tmp_path / "x.safetensors")
    assert same(
        load(
            SourceSpec(
                "a", mean=(0.0,), std=(1.0,), arch=parts(plain)[3], checkpoint=str(tmp_path / "x.safetensors")
            )
        ),
        plain,
    )


def test_check_removes_prefixes_and_compares_the_weights(tmp_path: Path) -> None:
    source = mlp_source("a", [40, 40], 3)
    for name, prefix in (("a", "module."), ("b", "")):
        save_file({f"{prefix}{n}": t for n, t in source.weights.items()}, tmp_path / f"{name}.safetensors")
    arch = {"family": "mlp", "input_size": (1, 4, 4), "widths": (40, 40)}
    entries = [{"name": n, "arch": arch, "checkpoint": str(tmp_path / f"{n}.safetensors")} for n in "ab"]
    found = inspect(request(entries, "average", None, Hardware(device="cpu"), 0, overwrite=False))
    assert found.reasons == ()
    assert found.similarity == pytest.approx((1.0,))
    torch.save(dict(source.weights), tmp_path / "a.pt")
    entries[0]["checkpoint"] = str(tmp_path / "a.pt")
    legacy = inspect(request(entries, "average", None, Hardware(device="cpu"), 0, overwrite=False))
    assert legacy.reasons == ()
    assert legacy.similarity == pytest.approx((1.0,))
