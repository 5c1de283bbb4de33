"""Merges of ConvNeXts: what is written is timm's network, of the same function, and trainable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from fsmerge_cli import merge
from fsmerge_cli.methods import METHODS
from fsmerge_cli.runs.check import inspect
from tests.support.checks import check_request
from tests.support.convnets import write_conv
from tests.support.convnexts import FAMILY, convnext_arch

PIXELS = {"mean": [0.4], "std": [0.2]}


def images(count: int = 24) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def entries(root: Path, variant: str = "plain", count: int = 2) -> list[dict[str, Any]]:
    arch = convnext_arch(variant, in_chans=1)
    return [write_conv(root / str(i), FAMILY, arch, i, PIXELS) for i in range(1, count + 1)]


def certificates(root: Path) -> set[str]:
    content = json.loads((root / "run/evaluation.json").read_text())["certificates"]
    return {own["status"] for own in content.values()}


@pytest.mark.full
def test_timm_loads_the_merged_network_and_training_it_lowers_the_loss(tmp_path: Path) -> None:
    result = merge(entries(tmp_path), method="zipit", data=images(), output=tmp_path / "run")
    assert certificates(tmp_path) == {"holds", "not applicable"}
    module = timm.create_model(f"local-dir:{tmp_path / 'run/merged'}", pretrained=True).eval()
    classifier = timm.create_model(f"local-dir:{tmp_path / 'run/classifier'}", pretrained=True).eval()
    pixels = (images() - 0.4) / 0.2
    with torch.no_grad():
        features = result.backbone()(images())
        torch.testing.assert_close(module(pixels), features, rtol=1e-5, atol=1e-5 * float(features.abs().max()))
        logits = torch.cat([head.joint_logits(features) for head in result.certifier.heads.values()], 1)
        found = classifier(pixels.expand(-1, 3, -1, -1))
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    classes, losses = torch.arange(len(pixels)) % 3, []
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    classifier.train()
    for _ in range(11):
        loss = F.cross_entropy(classifier(pixels.expand(-1, 3, -1, -1)), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


OWN = {"fs_merge": {"steps": 3}, "fs_merge_paper": {"steps": 3}, "kd": {"steps": 3}, "ada_merging": {"steps": 3}}


@pytest.mark.full
@pytest.mark.parametrize("variant", ["plain", "global response normalisation (V2)"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_merges_convnexts_and_its_certificates_hold(name: str, variant: str, tmp_path: Path) -> None:
    *models, base = entries(tmp_path, variant, 3)
    options: dict[str, Any] = {"base": base["checkpoint"]} if METHODS[name].uses_base else {}
    method = {"name": name, **OWN.get(name, {})}
    merge(models, method=method, data=images(), output=tmp_path / "run", **options)
    assert certificates(tmp_path) <= {"holds", "not applicable"}


@pytest.mark.full
def test_a_wider_network_of_pleas_is_written_and_timm_loads_it(tmp_path: Path) -> None:
    method = {"name": "pleas", "budget_flops": 1.6}
    result = merge(entries(tmp_path), method=method, data=images(), output=tmp_path / "run")
    assert certificates(tmp_path) <= {"holds", "not applicable"}
    module = timm.create_model(f"local-dir:{tmp_path / 'run/merged'}", pretrained=True).eval()
    assert module.num_features == result.plan.arch.features
    dims = json.loads((tmp_path / "run/merged/config.json").read_text())["model_args"]["dims"]
    assert sum(dims) > sum([4, 6, 6, 8])


@pytest.mark.full
def test_check_reports_convnexts(tmp_path: Path) -> None:
    found = inspect(check_request(entries(tmp_path)))
    assert [(row.architecture, row.width, row.depth, row.mean, row.std) for row in found.rows] == [
        ("convnext_tiny", 8, 5, (0.4,), (0.2,))
    ] * 2
    assert not [own for own in found.methods if own.why_not and "convnext" in own.why_not]
