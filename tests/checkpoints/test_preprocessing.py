"""Folding of mean and std into the first layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.common.errors import MismatchError
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused, save
from tests.support.sources import mlp_source
from tests.support.vits import vit_source


@pytest.mark.parametrize(("mean", "std"), [((0.3,), (0.2,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
@pytest.mark.parametrize("stated", ["in the options", "in the checkpoint"])
def test_normalisation_is_folded_into_the_first_layer(
    mean: tuple[float, ...], std: tuple[float, ...], stated: str, tmp_path: Path
) -> None:
    source = mlp_source("task", [6, 5], 3, input_size=(3, 4, 4))
    folder = save(tmp_path, source, "task")
    spec = SourceSpec("mine", checkpoint=str(folder))
    if stated == "in the options":
        spec = replace(spec, mean=mean, std=std)
    else:
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"] |= {"mean": list(mean), "std": list(std)}
        (folder / "config.json").write_text(json.dumps(config))
    found = load(spec)
    pixels = torch.rand(7, 3, 4, 4)
    shape = (1, -1, 1, 1)
    normalised = (pixels - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)
    torch.testing.assert_close(network(found)(pixels), network(source)(normalised))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_the_folded_normalisation_is_exact_in_fp64(channels: int, shared: bool) -> None:
    source = mlp_source("task", [6, 5], 3, input_size=(channels, 4, 4), activation="tanh")
    weights = {name: tensor.double() for name, tensor in source.weights.items()}
    count = 1 if shared else channels
    mean, std = (0.485, 0.456, 0.406)[:count], (0.229, 0.224, 0.225)[:count]
    folded = fold_normalisation(source.family, source.arch, weights, mean, std, "here")
    assert folded.keys() == weights.keys()
    assert all(folded[name] is weights[name] for name in weights if not name.startswith("fc0"))
    pixels = torch.rand(7, channels, 4, 4, dtype=torch.float64)
    shape = (1, -1, 1, 1)
    normalised = (pixels - torch.tensor(mean, dtype=torch.float64).reshape(shape)) / torch.tensor(
        std, dtype=torch.float64
    ).reshape(shape)
    direct = network(replace(source, weights=folded))(pixels)
    explicit = network(replace(source, weights=weights))(normalised)
    torch.testing.assert_close(direct, explicit, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(direct, network(replace(source, weights=weights))(pixels), atol=1e-3)


def test_mean_0_and_std_1_leave_the_weights_unchanged(source: Source) -> None:
    folded = fold_normalisation(source.family, source.arch, source.weights, (0.0,), (1.0,), "here")
    assert all(folded[name] is tensor for name, tensor in source.weights.items())


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.5), (1.0,)), ((0.5,), (1.0, 1.0)), ((0.5,), (0.0,)), ((0.5,) * 4, (1.0,) * 4)]
)
def test_mean_and_std_need_one_value_per_channel(
    mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    folder = save(tmp_path, mlp_source("task", [6, 5], 3, input_size=(3, 4, 4)), "task")
    assert refused(SourceSpec("mine", checkpoint=str(folder), mean=mean, std=std)) == (
        f"source 'mine': {folder}: mean {list(mean)} and std {list(std)} need 1 or 3 values each, "
        "every std above 0."
    )


@pytest.mark.parametrize("shape", [(6, 16), (6, 4), (6,), (), (0, 48)])
def test_a_first_layer_of_another_shape_is_reported_by_the_plan(shape: tuple[int, ...], tmp_path: Path) -> None:
    arch = {"family": "mlp", "input_size": [3, 4, 4], "widths": [6]}
    weights = {"fc0.weight": torch.ones(shape), "fc0.bias": torch.ones(6)}
    save_file(weights, tmp_path / "x.safetensors")
    spec = SourceSpec("a", arch=arch, checkpoint=str(tmp_path / "x.safetensors"), mean=(0.5,), std=(0.25,))
    with pytest.raises(MismatchError) as error:
        compile_plan([load(spec), load(replace(spec, name="b"))])
    assert "fc0.weight" in str(error.value)


@pytest.mark.parametrize("other", ["patch_embed.proj.bias", "pos_embed"])
def test_a_shift_is_not_folded_into_a_tensor_of_another_shape(other: str) -> None:
    source = vit_source("class token", 1)
    weights = {**source.weights, other: torch.ones(1, 5, 7)}
    if other == "pos_embed":
        del weights["patch_embed.proj.bias"]
    folded = fold_normalisation(source.family, source.arch, weights, (0.5,), (0.25,), "here")
    assert torch.equal(folded[other], weights[other])


def test_a_mean_needs_a_bias(tmp_path: Path) -> None:
    source = mlp_source("task", [6, 5], 3, bias=False)
    folder = save(tmp_path, source, "task")
    assert refused(SourceSpec("mine", checkpoint=str(folder), mean=(0.5,))) == (
        f"source 'mine': {folder}: mean [0.5] cannot be folded into fc0, which has no bias. "
        "Pass images that are already centred, and models.sources.N.mean=[0.0]."
    )
    scaled = load(SourceSpec("mine", checkpoint=str(folder), std=(0.5,)))
    assert torch.equal(scaled.weights["fc0.weight"], source.weights["fc0.weight"] * 2)
