"""Loading of folders and files: weights, heads, labels, data types."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.architectures.mlp import MLPArch
from fsmerge_cli.checkpoints.files import file_sha256
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.write import model_config
from fsmerge_cli.methods import Problem
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import MLP_ARCH, refused, save, save_single
from tests.support.sources import mlp_source, random_images


def test_a_folder_is_read_back_unchanged(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", source, "task")
    found = load(SourceSpec("mine", checkpoint=str(folder)))
    assert found.name == "mine"
    assert found.family is SPECS["mlp"]
    assert found.arch == source.arch
    assert found.weights.keys() == source.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in source.weights.items())
    assert found.head is not None
    assert source.head is not None
    assert source.head.bias is not None
    assert found.head.bias is not None
    assert torch.equal(found.head.weight, source.head.weight)
    assert torch.equal(found.head.bias, source.head.bias)
    assert found.labels == ("task-task-0", "task-task-1", "task-task-2")
    assert found.origin == str(folder)
    assert found.sha256 == file_sha256(folder / "model.safetensors")


def mapped(tensor: torch.Tensor, file: Path) -> bool:
    """Whether the tensor's memory is a mapping of the file, by the system's own list."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.endswith(str(file))
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_weights_stay_memory_mapped_unless_they_are_changed(source: Source, tmp_path: Path) -> None:
    file = save(tmp_path / "model", source, "task") / "model.safetensors"
    found = load(SourceSpec("mine", checkpoint=str(file.parent), mean=(0.5,), std=(0.25,)))
    copied = {name for name, tensor in found.weights.items() if not mapped(tensor, file)}
    assert copied == {"fc0.weight", "fc0.bias"}  # what the normalisation changes
    place = {name: tensor.data_ptr() for name, tensor in found.weights.items()}
    plan = compile_plan([found, replace(found, name="twin")])
    (weights, _) = Problem(plan, [found, found], random_images(2, 1)).weights()
    for state in (network(found).state_dict(), weights):
        assert {name: tensor.data_ptr() for name, tensor in state.items()} == place


def test_a_folder_without_heads_is_a_source_without_a_head(source: Source, tmp_path: Path) -> None:
    found = load(SourceSpec("mine", checkpoint=str(save(tmp_path, source))))
    assert (found.head, found.labels) == (None, None)


def test_a_single_file_needs_only_the_arch_and_has_its_head(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "trained.safetensors", source)
    found = load(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(file), labels=("x", "y", "z")))
    assert found.arch == MLPArch((1, 4, 4), (6, 5))
    assert found.weights.keys() == source.weights.keys()
    assert found.head is not None
    assert source.head is not None
    assert torch.equal(found.head.weight, source.head.weight)
    assert found.labels == ("x", "y", "z")
    assert (found.origin, found.sha256) == (str(file), file_sha256(file))


def test_a_single_file_uses_the_arch_of_the_config_next_to_it(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "trained.safetensors", source)
    (tmp_path / "config.json").write_text(json.dumps(model_config(source.family, source.arch)))
    assert load(SourceSpec("mine", checkpoint=str(file))).arch == source.arch


def test_default_labels_are_row_numbers(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "trained.safetensors", source)
    assert load(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(file))).labels == ("0", "1", "2")


def test_a_given_arch_overrides_the_config(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "task")
    found = load(SourceSpec("mine", arch={**MLP_ARCH, "activation": "tanh"}, checkpoint=str(folder)))
    assert found.arch == replace(source.arch, activation="tanh")


def test_the_chosen_one_of_several_heads_is_loaded_with_its_labels(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "birds", "cars")
    assert source.head is not None
    for number, name in enumerate(("birds", "cars")):
        found = load(SourceSpec("mine", checkpoint=str(folder), head=name))
        assert found.head is not None
        assert torch.equal(found.head.weight, source.head.weight + number)
        assert found.labels == tuple(f"{name}-task-{c}" for c in range(3))
    given = load(SourceSpec("mine", checkpoint=str(folder), head="cars", labels=("x", "y", "z")))
    assert given.labels == ("x", "y", "z")


def test_one_of_several_heads_has_to_be_chosen(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "cars", "birds")
    assert refused(SourceSpec("mine", checkpoint=str(folder))) == (
        f"source 'mine': {folder} has 2 heads: birds, cars. "
        "Choose the head of this task: models.sources.N.head=NAME"
    )
    assert refused(SourceSpec("mine", checkpoint=str(folder), head="bird")) == (
        f"source 'mine': {folder}: unknown head 'bird'. Did you mean 'birds'? Available: birds, cars."
    )


def test_a_scalar_head_is_refused(source: Source, tmp_path: Path) -> None:
    save(tmp_path, source)
    save_file({"x.weight": torch.tensor(1.0)}, tmp_path / "heads.safetensors")
    assert refused(SourceSpec("a", checkpoint=str(tmp_path))) == (
        f"source 'a': {tmp_path}: x.weight is a scalar, not a classifier [classes, features]."
    )


def test_a_missing_head_is_refused(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source)
    assert refused(SourceSpec("mine", checkpoint=str(folder), head="task")) == (
        f"source 'mine': {folder}: unknown head 'task'. Available: none."
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read_as_fp32(dtype: torch.dtype, source: Source, tmp_path: Path) -> None:
    assert source.head is not None
    weights = {name: tensor.to(dtype) for name, tensor in source.weights.items()}
    save_file({**weights, "head.weight": source.head.weight.to(dtype)}, tmp_path / "half.safetensors")
    found = load(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(tmp_path / "half.safetensors")))
    assert found.head is not None
    assert {tensor.dtype for tensor in (*found.weights.values(), found.head.weight)} == {torch.float32}
    assert all(torch.equal(found.weights[name], tensor.float()) for name, tensor in weights.items())
    assert found.head(network(found)(torch.rand(2, 1, 4, 4))).shape == (2, 3)


def test_counters_keep_their_integer_type(tmp_path: Path) -> None:
    source = mlp_source("task", [6, 5], 3, norm="batch")
    found = load(SourceSpec("mine", checkpoint=str(save(tmp_path, source, "task"))))
    assert found.weights["norm0.num_batches_tracked"].dtype == torch.int64
