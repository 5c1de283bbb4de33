"""Merges of ResNets: what is written is timm's network with BatchNorm, of the same function, and trainable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from fsmerge_cli import finetune, merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.check import inspect
from fsmerge_cli.runs.result import MergeResult
from tests.support.checks import check_request
from tests.support.conv_runs import PIXELS, certificates, images, loaded_by_timm, losses_of_training, normalised
from tests.support.resnets import write_resnet

DEEP = "deep stem, average pooling on the shortcut"


def merged(
    root: Path,
    method: Any = "average",
    data: Any = None,
    variant: str = DEEP,
    channels: Any = None,
    **options: Any,
) -> MergeResult:
    more = {} if channels is None else {"channels": channels}
    models = [write_resnet(root / str(i), variant, i, PIXELS, in_chans=1, **more) for i in (1, 2)]
    return merge(models, method=method, data=data, output=root / "run", **options)


@pytest.mark.full
def test_timm_loads_the_merged_network_and_training_it_lowers_the_loss(tmp_path: Path) -> None:
    result = merged(tmp_path, data=images(16))
    assert certificates(tmp_path) == {
        **dict.fromkeys(["reloaded", "unfolded", "heads", "evaluated", "classifier"], "holds"),
        "permuted": "not applicable",
    }
    module, classifier = loaded_by_timm(result, tmp_path, images(16), 1e-5)
    assert (module.pretrained_cfg["mean"], classifier.pretrained_cfg["mean"]) == ([0.4], [0.4] * 3)
    pixels = normalised(images(16))
    for model in (module, classifier):
        images_in = pixels if model is module else pixels.expand(-1, 3, -1, -1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = torch.nn.Linear(model(images_in[:1]).shape[1], 3)
        losses = losses_of_training(model, images_in, 0.1, head)
        assert losses[-1] < 0.9 * losses[0]


@pytest.mark.full
def test_without_images_the_statistics_are_0_and_1(tmp_path: Path) -> None:
    merged(tmp_path)
    module: Any = timm.create_model(f"local-dir:{tmp_path / 'run/merged'}", pretrained=True)
    assert torch.equal(module.bn1.running_mean, torch.zeros(8))
    assert torch.equal(module.bn1.running_var, torch.ones(8))


@pytest.mark.full
@pytest.mark.parametrize("variant", ["bottleneck", "squeeze-and-excitation", "pooling by a convolution"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_certificates_hold_for_every_kind_of_block_and_data_type(
    variant: str, dtype: str, tmp_path: Path
) -> None:
    result = merged(
        tmp_path, {"name": "fs_merge", "steps": 4, "start": "matched"}, images(16), variant, dtype=dtype
    )
    assert set(certificates(tmp_path).values()) == {"holds"}
    again = load(SourceSpec("a", checkpoint=str(tmp_path / "run/merged"), head="t1"))
    assert again.arch.mean == (0.4,)
    scale = max(float(t.abs().max()) for t in again.weights.values())
    expected = dict(result.solution.weights)
    torch.testing.assert_close(dict(again.weights), expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.full
def test_a_merged_network_is_merged_again_and_distilled_from_scratch(tmp_path: Path) -> None:
    merged(tmp_path, data=images(16))
    models = [{"name": n, "checkpoint": str(tmp_path / "run/merged"), "head": n} for n in ("t1", "t2")]
    result = merge(models, method={"name": "kd", "steps": 3, "start": "random"}, data=images(16))
    assert result.plan.source_archs[0].mean == (0.4,)
    assert result.solution.weights.keys() == load(SourceSpec(**models[0])).weights.keys()


@pytest.mark.full
def test_check_reports_resnets_and_the_methods_that_apply(tmp_path: Path) -> None:
    models = [write_resnet(tmp_path / str(i), DEEP, i, PIXELS, in_chans=1) for i in (1, 2)]
    found = inspect(check_request(models))
    assert [(row.architecture, row.width, row.depth, row.mean, row.std) for row in found.rows] == [
        ("resnet18d", 12, 4, (0.4,), (0.2,))
    ] * 2
    applying = [own.why_not for own in found.methods if own.name == "fs_closed_form"]
    assert applying == ["needs unlabelled images (data=...)"]


@pytest.mark.full
def test_a_wider_network_of_pleas_is_written_and_timm_loads_it(tmp_path: Path) -> None:
    result = merged(tmp_path, {"name": "pleas", "budget_flops": 1.5}, images(16), channels=[6, 8, 8, 12])
    found = certificates(tmp_path)
    assert found.pop("unfolded") == "not applicable"
    assert set(found.values()) == {"holds"}
    module = timm.create_model(f"local-dir:{tmp_path / 'run/merged'}", pretrained=True).eval()
    assert module.num_features == result.plan.arch.features
    assert result.solution.facts["separate_units"] > 0
    channels = json.loads((tmp_path / "run/merged/config.json").read_text())["model_args"]["channels"]
    assert channels != [6, 8, 8, 12]
    assert all(new >= old for new, old in zip(channels, [6, 8, 8, 12]))


@pytest.mark.full
@pytest.mark.parametrize("correct", [True, False])
def test_the_closed_form_is_written_and_its_certificates_hold(correct: bool, tmp_path: Path) -> None:
    method = {"name": "fs_closed_form", "views": 1, "correct": correct}
    merged(tmp_path, method, images(16))
    found = certificates(tmp_path)
    assert found.pop("permuted") == "not applicable"
    assert found.pop("unfolded") == ("not applicable" if correct else "holds")
    assert set(found.values()) == {"holds"}


def test_finetuning_is_refused_by_name(tmp_path: Path) -> None:
    entry = write_resnet(tmp_path / "a", DEEP, 1, PIXELS, in_chans=1)
    with pytest.raises(ConfigError) as error:
        finetune({"checkpoint": entry["checkpoint"], "task": "shapes", "labels": ["a", "b"]}, data="glyphs")
    assert str(error.value) == (
        "source 'shapes': finetune does not train family 'resnet', whose BatchNorms are folded into the "
        "convolutions when it is read. Train it with timm, which loads its folder (local-dir:FOLDER); the "
        "result is a source as before."
    )
