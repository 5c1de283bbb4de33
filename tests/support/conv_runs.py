"""Merges of convolutional networks, and what timm makes of the folders that they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli import merge
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.task_vectors.coefficients import Tuned
from fsmerge_cli.runs.result import MergeResult

PIXELS = {"mean": [0.4], "std": [0.2]}
SHORT = {name: {"steps": 3} for name, method in METHODS.items() if issubclass(method, Trained | Tuned)}
IN_TEST = ("fs_closed_form", "fs_merge", "kd", "pleas", "regmean", "tsv", "zipit")
"""Methods in `make test`; the others, which compute likewise, in `make test-slow`."""


def images(size: int, count: int = 24) -> Tensor:
    """Grey images [n, 1, size, size]."""
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def methods(variants: tuple[str, ...]) -> Any:
    """Every method with every variant, marked by what it costs."""
    return pytest.mark.parametrize(
        ("name", "variant"),
        [
            pytest.param(n, v, marks=pytest.mark.full if n in IN_TEST and v == variants[-1] else pytest.mark.slow)
            for n in sorted(METHODS)
            for v in variants
        ],
    )


def merged_by(name: str, entries: list[dict[str, Any]], data: Tensor, root: Path) -> set[str]:
    """Merge all entries but the last, which is the base of methods that need one; the statuses of certificates."""
    *models, base = entries
    options = {"base": base["checkpoint"]} if METHODS[name].uses_base else {}
    merge(models, method={"name": name, **SHORT.get(name, {})}, data=data, output=root / "run", **options)
    return {*certificates(root).values()}


def certificates(root: Path) -> dict[str, str]:
    """The statuses of the certificates of root/run, by name."""
    content = json.loads((root / "run/evaluation.json").read_text())["certificates"]
    return {name: own["status"] for name, own in content.items()}


def loaded_by_timm(result: MergeResult, root: Path, data: Tensor, tolerance: float) -> tuple[Any, Any]:
    """timm's backbone and classifier of root/run, which have the function of `result` on `data`."""
    run = root / "run"
    module, classifier = (timm.create_model(f"local-dir:{run / n}", pretrained=True).eval() for n in FOLDERS)
    pixels = normalised(data)
    with torch.no_grad():
        features = result.backbone()(data)
        torch.testing.assert_close(module(pixels), features, rtol=1e-5, atol=1e-5 * float(features.abs().max()))
        logits = torch.cat([head.joint_logits(features) for head in result.certifier.heads.values()], 1)
        found, atol = classifier(pixels.expand(-1, 3, -1, -1)), tolerance * float(logits.abs().max())
        torch.testing.assert_close(found, logits, rtol=tolerance, atol=atol)
    return module, classifier


FOLDERS = ("merged", "classifier")


def normalised(data: Tensor) -> Tensor:
    """Pixels as timm's networks read them."""
    return (data - PIXELS["mean"][0]) / PIXELS["std"][0]


def losses_of_training(
    model: nn.Module, inputs: Tensor, rate: float, head: nn.Module | None = None
) -> list[float]:
    """The losses before each of eleven steps that train `model` and `head` on three classes."""
    head = nn.Identity() if head is None else head
    classes, losses = torch.arange(len(inputs)) % 3, []
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=rate)
    model.train()
    for _ in range(11):
        loss = F.cross_entropy(head(model(inputs)), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
