"""Merges of VGGs: what is written is timm's network with BatchNorm, of the same function, and trainable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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
from tests.support.vggs import FAMILY, vgg_arch


def entries(root: Path, variant: str = "BatchNorm", count: int = 2) -> list[dict[str, Any]]:
    arch = vgg_arch(variant, in_chans=1)
    return [write_conv(root / str(i), FAMILY, arch, i, PIXELS) for i in range(1, count + 1)]


@pytest.mark.full
def test_timm_loads_the_merged_network_and_training_it_lowers_the_loss(tmp_path: Path) -> None:
    result = merge(entries(tmp_path), method="zipit", data=images(32), output=tmp_path / "run")
    assert {*certificates(tmp_path).values()} == {"holds", "not applicable"}
    module, classifier = loaded_by_timm(result, tmp_path, images(32), 1e-4)
    card = (tmp_path / "run/merged/README.md").read_text()
    assert "pixels in 0..1, 1 x 32 x 32, minus the mean [0.4], divided by the std [0.2]" in card
    variances = [part.running_var for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(variances) == 5
    assert all(not torch.equal(own, torch.ones_like(own)) for own in variances if own is not None)
    losses = losses_of_training(classifier, normalised(images(32)).expand(-1, 3, -1, -1), 0.02)
    assert losses[-1] < 0.9 * losses[0]


@methods(("plain", "BatchNorm"))
def test_every_method_merges_vggs_and_its_certificates_hold(name: str, variant: str, tmp_path: Path) -> None:
    assert merged_by(name, entries(tmp_path, variant, 3), images(32), tmp_path) <= {"holds", "not applicable"}


@pytest.mark.full
def test_check_reports_vggs(tmp_path: Path) -> None:
    found = inspect(check_request(entries(tmp_path)))
    assert [(row.architecture, row.width, row.depth, row.mean, row.std) for row in found.rows] == [
        ("vgg5_tiny_bn", 6, 7, (0.4,), (0.2,))
    ] * 2
    assert not [own for own in found.methods if own.why_not and "vgg" in own.why_not]
