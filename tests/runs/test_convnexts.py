"""Merges of ConvNeXts: what is written is timm's network, of the same function, and trainable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm

from fsmerge_cli import merge
from fsmerge_cli.runs.check import inspect
from tests.support.checks import check_request
from tests.support.conv_runs import (
    PIXELS,
    certificates,
    images,
    loaded_by_timm,
    losses_of_training,
    merged_by,
    methods,
    normalised,
)
from tests.support.convnets import write_conv
from tests.support.convnexts import FAMILY, convnext_arch


def entries(root: Path, variant: str = "plain", count: int = 2) -> list[dict[str, Any]]:
    arch = convnext_arch(variant, in_chans=1)
    return [write_conv(root / str(i), FAMILY, arch, i, PIXELS) for i in range(1, count + 1)]


@pytest.mark.full
def test_timm_loads_the_merged_network_and_training_it_lowers_the_loss(tmp_path: Path) -> None:
    result = merge(entries(tmp_path), method="zipit", data=images(32), output=tmp_path / "run")
    assert {*certificates(tmp_path).values()} == {"holds", "not applicable"}
    _, classifier = loaded_by_timm(result, tmp_path, images(32), 1e-4)
    losses = losses_of_training(classifier, normalised(images(32)).expand(-1, 3, -1, -1), 0.1)
    assert losses[-1] < 0.9 * losses[0]


@methods(("plain", "global response normalisation (V2)"))
def test_every_method_merges_convnexts_and_its_certificates_hold(name: str, variant: str, tmp_path: Path) -> None:
    assert merged_by(name, entries(tmp_path, variant, 3), images(32), tmp_path) <= {"holds", "not applicable"}


@pytest.mark.full
def test_a_wider_network_of_pleas_is_written_and_timm_loads_it(tmp_path: Path) -> None:
    method = {"name": "pleas", "budget_flops": 1.6}
    result = merge(entries(tmp_path), method=method, data=images(32), output=tmp_path / "run")
    assert {*certificates(tmp_path).values()} <= {"holds", "not applicable"}
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
