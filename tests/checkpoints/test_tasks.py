"""Merged folders as sources, label names from files and class folders, and rounded results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models import create_model

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.dtype import rounded, to_dtype
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.tasks import read_labels
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.errors import CertificateError, ConfigError
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.request import source_specs
from tests.support.sources import mlp_source
from tests.support.vits import vit_source


def saved(folder: Path, source: Source) -> dict[str, Any]:
    assert source.head is not None
    stored_heads = head_tensors({source.name: source.head})
    write_model(folder, model_config(source.family, source.arch), source.weights, *stored_heads)
    return {"name": source.name, "checkpoint": str(folder)}


@pytest.fixture
def three(tmp_path: Path) -> list[dict[str, Any]]:
    return [saved(tmp_path / name, mlp_source(name, [6, 5], seed)) for seed, name in enumerate("abc")]


# Merging merged models


def test_every_task_of_a_merged_folder_is_a_source(three: list[dict[str, Any]], tmp_path: Path) -> None:
    first = merge(three[:2], method="average", output=tmp_path / "first")
    entries = [{"name": "ab", "checkpoint": str(tmp_path / "first/merged")}, three[2]]
    assert [(spec.name, spec.head) for spec in source_specs(entries)] == [("a", "a"), ("b", "b"), ("c", None)]
    of_run = source_specs([{"name": "ab", "checkpoint": str(tmp_path / "first")}])
    assert [load(spec).origin for spec in of_run] == [str(tmp_path / "first/merged")] * 2
    again = merge(entries, method="average", output=tmp_path / "again")
    assert list(again.heads) == ["a", "b", "c"]
    assert again.heads["b"].labels == first.heads["b"].labels
    third = load(SourceSpec(**three[2]))
    for name, tensor in again.solution.weights.items():
        expected = (2 * first.solution.weights[name] + third.weights[name]) / 3
        torch.testing.assert_close(tensor, expected)
    assert "'b' and 'a' are tasks of one model: its weights are counted once per task" in again.notes
    assert "head: b" in (tmp_path / "again/config.yaml").read_text()


def test_one_head_can_be_chosen_and_renamed(three: list[dict[str, Any]], tmp_path: Path) -> None:
    merge(three[:2], method="average", output=tmp_path / "first")
    entries = [{"name": "mine", "checkpoint": str(tmp_path / "first/merged"), "head": "b"}, three[2]]
    assert list(merge(entries, method="average").heads) == ["mine", "c"]


# Label names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", "red\ngreen \n deep blue\n\n"),
        ("x.txt", "\ufeffred\ngreen\ndeep blue"),  # with a byte order mark
        ("x.json", '["red", "green", "deep blue"]'),
        ("x.json", '{"0": "red", "2": "deep blue", "1": "green"}'),
    ],
)
def test_labels_from_a_file(name: str, content: str, three: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_labels(str(tmp_path / name), "here") == ("red", "green", "deep blue")
    entries = [{**three[0], "labels": str(tmp_path / name)}, three[1]]
    assert merge(entries, method="average").heads["a"].labels == ("red", "green", "deep blue")


@pytest.mark.parametrize("content", ["", "\n\n", "a\n\nb\n"])
def test_a_label_file_with_missing_names_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(ConfigError, match="should contain label names, one per line"):
        read_labels(str(tmp_path / "x.txt"), "here")


@pytest.mark.parametrize("split", [True, False])
def test_labels_from_class_folders(split: bool, three: list[dict[str, Any]], tmp_path: Path) -> None:
    for task in "ab":
        for name in ("ox", "cat", "dog"):
            folder = tmp_path / "images" / task / ("train" if split else "") / name
            folder.mkdir(parents=True)
            Image.new("L", (4, 4)).save(folder / "0.png")
    entries = [{**entry, "labels": "data"} for entry in three[:2]]
    data = {"name": "folder", "root": str(tmp_path / "images"), "images_per_task": 2}
    assert [spec.labels for spec in source_specs(entries, _folder(data))] == [("cat", "dog", "ox")] * 2


def _folder(data: dict[str, Any]) -> Any:
    from fsmerge_cli.runs.request import chosen_data

    return chosen_data(data)


@pytest.mark.parametrize("key", ["label_names", "pretrained_cfg"])
def test_labels_from_timms_config(key: str, tmp_path: Path) -> None:
    source = vit_source("class token", 1)
    assert source.head is not None
    tensors = {**source.weights, "head.weight": source.head.weight}
    config = {**source.family.config(source.arch), "label_names": ["x", "y", "z"]}
    if key == "pretrained_cfg":
        config = {**config, "pretrained_cfg": {"label_names": config.pop("label_names")}}
    write_model(tmp_path, config, tensors, {}, {})
    assert load(SourceSpec("a", checkpoint=str(tmp_path))).labels == ("x", "y", "z")


# Rounded results


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_rounded_model_is_evaluated_written_and_read_back(
    dtype: str, three: list[dict[str, Any]], tmp_path: Path
) -> None:
    exact = merge(three, method="average")
    result = merge(three, method="average", output=tmp_path / "out", dtype=dtype)
    merged = tmp_path / "out/merged"
    own = getattr(torch, dtype)
    for file, tensors in (("model", exact.solution.weights), ("heads", head_tensors(exact.heads)[0])):
        found = load_file(merged / f"{file}.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor.to(own)) for name, tensor in tensors.items())
    assert all(
        torch.equal(t, exact.solution.weights[n].to(own).float()) for n, t in result.solution.weights.items()
    )
    certificates = json.loads((tmp_path / "out/evaluation.json").read_text())["certificates"]
    assert certificates["reloaded"]["what"].endswith(f"= those in memory, rounded to {dtype}")
    assert certificates["reloaded"]["error"] == 0.0
    assert 0 < certificates["rounded"]["error"] < 0.1
    assert json.loads((merged / "config.json").read_text())["torch_dtype"] == dtype
    assert f"The weights are stored in `{dtype}`" in (merged / "README.md").read_text()
    assert f"dtype: {dtype}" in (tmp_path / "out/config.yaml").read_text()
    again = load(SourceSpec("a", checkpoint=str(merged), head="a"))
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in result.solution.weights.items())


def test_float32_rounds_nothing(three: list[dict[str, Any]], tmp_path: Path) -> None:
    result = merge(three, method="average", output=tmp_path / "out")
    assert "rounded" not in json.loads((tmp_path / "out/evaluation.json").read_text())["certificates"]
    assert "torch_dtype" not in json.loads((tmp_path / "out/merged/config.json").read_text())
    assert "The weights are stored" not in (tmp_path / "out/merged/README.md").read_text()
    with safe_open(tmp_path / "out/merged/model.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("fc0.weight"), result.solution.weights["fc0.weight"])


def test_timm_loads_a_rounded_model_and_gives_the_same_features(tmp_path: Path) -> None:
    entries = [saved(tmp_path / str(seed), vit_source("class token", seed)) for seed in (1, 2)]
    result = merge(entries, method="average", output=tmp_path / "out", dtype="bfloat16")
    loaded = create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
    pixels = torch.rand(2, 2, 8, 8)
    assert torch.equal(loaded(pixels), result.backbone()(pixels))


def test_a_changed_rounded_file_is_detected(
    three: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = merge(three, method="average", dtype="float16")
    monkeypatch.setattr(
        "fsmerge_cli.runs.result.to_dtype",
        lambda tensors, dtype: {n: t + 0.01 for n, t in to_dtype(tensors, dtype).items()},
    )
    with pytest.raises(CertificateError) as error:
        result.save(tmp_path / "out")
    assert [line.split(":")[0] for line in error.value.broken] == ["reloaded"]


def test_counters_are_not_rounded() -> None:
    tensors = {"n": torch.tensor(100_001), "x": torch.tensor([1.0001])}
    assert torch.equal(rounded(tensors, "bfloat16")["n"], tensors["n"])
    assert rounded(tensors, "bfloat16")["x"].item() == 1.0
