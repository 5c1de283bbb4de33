"""Sources without heads: what is written for their features, and how it is used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fsmerge_cli import evaluate, load_merged, merge
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.result import MergeResult
from fsmerge_cli.training.teachers import network
from tests.support.vits import vit_source

NO_HEADS = (
    "has no heads, so there are no predictions: its sources had none. In Python, load_merged(FOLDER).features("
    "images, SOURCE) gives the features of each source (a, b)."
)


def headless_run(folder: Path, heads: tuple[str, ...] = ()) -> tuple[list[Source], MergeResult, Tensor]:
    """Two transformers, of which those in `heads` have one, merged on random images into `folder`."""
    sources = [
        replace(vit_source("class token", seed, in_chans=3), name=name) for name, seed in (("a", 1), ("b", 2))
    ]
    sources = [own if own.name in heads else replace(own, head=None) for own in sources]
    pixels = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = merge(sources, method=FSClosedForm(views=0), data=pixels, output=folder)
    return sources, result, pixels


def test_the_features_of_every_source_come_out_of_the_folder(tmp_path: Path) -> None:
    sources, result, pixels = headless_run(tmp_path / "out")
    model = load_merged(tmp_path / "out")
    assert (model.tasks, [*model.projectors]) == ((), ["a", "b"])
    for source, U in zip(sources, result.solution.projectors):
        expected = result.backbone()(pixels) @ U.T
        torch.testing.assert_close(model.features(pixels, source.name), expected, rtol=1e-5, atol=1e-5)
        error = (expected - network(source)(pixels)).square().mean() / network(source)(pixels).var()
        assert error < 1  # it estimates the features of the source, in units of the source
    assert torch.equal(model.features(pixels), result.backbone()(pixels))
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())["certificates"]["features"]
    assert (written["status"], written["error"] < written["tolerance"]) == ("holds", True)
    with pytest.raises(ConfigError, match=r"unknown source without a head 'c'\. Available: a, b"):
        model.features(pixels, "c")


def test_without_heads_nothing_is_predicted(tmp_path: Path) -> None:
    headless_run(tmp_path / "out")
    where = f"{tmp_path}/out/merged {NO_HEADS}"
    model = load_merged(tmp_path / "out")
    for use in (lambda: model.predict(torch.rand(1, 3, 8, 8)), lambda: evaluate(tmp_path / "out", data="digits")):
        with pytest.raises(SourceError) as error:
            use()
        assert str(error.value) == where


@pytest.mark.full
def test_the_card_shows_how_to_get_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headless_run(tmp_path / "out")
    card = (tmp_path / "out" / "merged" / "README.md").read_text()
    assert "with one linear projector per task" in card
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out" / "merged")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["features"].shape == (1, 12)


@pytest.mark.full
def test_a_source_with_a_head_has_no_projector_of_its_own(tmp_path: Path) -> None:
    _, _, pixels = headless_run(tmp_path / "out", heads=("b",))
    model = load_merged(tmp_path / "out")
    assert (model.tasks, [*model.projectors]) == (("b",), ["a"])
    assert model.logits(pixels, "b").shape == (len(pixels), 3)
    stored = load_file(tmp_path / "out" / "merged" / "projectors.safetensors")
    assert sorted(stored) == ["a.weight", "tokens/a.bias", "tokens/a.weight"]
