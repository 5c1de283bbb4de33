"""Writing safetensors and JSON files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.atomic import write_json, write_tensors, write_text
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.sources import mlp_source


def test_a_model_is_read_back_exactly_and_rewritten_byte_identically(tmp_path: Path) -> None:
    source = mlp_source("task", [6, 5], 3, norm="batch")
    assert source.head is not None
    heads = {"task": source.head, "bare": Head(torch.randn(2, 5), None, ("ü", "no"))}
    config = model_config(source.family, source.arch)
    write_model(tmp_path / "one", config, source.weights, *head_tensors(heads))
    first = load(SourceSpec("task", checkpoint=str(tmp_path / "one"), head="task"))
    bare = load(SourceSpec("bare", checkpoint=str(tmp_path / "one"), head="bare"))
    assert first.head is not None
    assert bare.head is not None
    assert (first.arch, first.head.labels) == (source.arch, source.head.labels)
    assert first.weights.keys() == source.weights.keys()
    assert all(torch.equal(first.weights[name], tensor) for name, tensor in source.weights.items())
    assert torch.equal(first.head.weight, source.head.weight)
    assert (bare.head.bias, bare.head.labels) == (None, ("ü", "no"))
    shuffled = dict(reversed(first.weights.items()))
    tensors, facts = head_tensors({"task": first.head, "bare": bare.head})
    write_model(tmp_path / "two", config, shuffled, dict(reversed(tensors.items())), facts)
    for name in ("config.json", "model.safetensors", "heads.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_weights_that_share_memory_are_written_separately(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_model(tmp_path, {}, {"a": whole, "b": whole.T, "c": whole[1:]}, {}, {})
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["a"], whole)
    assert torch.equal(stored["b"], whole.T)
    assert torch.equal(stored["c"], whole[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_json_is_strict_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"task": "fünf", "value": 0.5})
    assert (tmp_path / "a.json").read_text() == '{\n  "task": "fünf",\n  "value": 0.5\n}\n'
    assert json.loads((tmp_path / "a.json").read_text()) == {"task": "fünf", "value": 0.5}
    with pytest.raises(ValueError, match=r"^Out of range float values are not JSON compliant"):
        write_json(tmp_path / "b.json", {"loss": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_weights_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "text")
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "a.txt").stat().st_mode
