"""Nearest images: against a slow definition, and at its bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsmerge_cli import merge
from fsmerge_cli.evaluation import neighbours as module
from fsmerge_cli.evaluation.neighbours import MIN_IMAGES, NEIGHBOURS, neighbours, neighbours_by_task
from tests.support.vits import vit_source


def features(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def slow(found: Tensor, source: Tensor) -> tuple[int, int]:
    """Image by image, with sorted cosines."""
    nearest = among = 0
    for i in range(len(found)):
        others = [j for j in range(len(found)) if j != i]
        orders = [
            sorted(others, key=lambda j, x=x: -float(torch.cosine_similarity(x[i], x[j], dim=0)))
            for x in (found.double(), source.double())
        ]
        nearest += orders[0][0] == orders[1][0]
        among += orders[1][0] in orders[0][:NEIGHBOURS]
    return nearest, among


def test_it_is_the_slow_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    source = features(40)
    found = source + 0.7 * features(40, seed=1)
    expected = slow(found, source)
    assert 0 < expected[0] < expected[1] < 40
    for rows in (512, 7):  # in one part and in several
        monkeypatch.setattr(module, "ROWS", rows)
        own = neighbours(found, source)
        assert own is not None
        assert (own.images, own.nearest, own.among) == (40, *expected)


def test_a_scaled_and_rotated_copy_has_the_same_neighbours_and_few_images_none() -> None:
    source = features(30)
    turn = torch.linalg.qr(features(5, seed=2)).Q
    own = neighbours(3 * source @ turn, source)
    assert own is not None
    assert (own.nearest, own.among) == (30, 30)
    assert neighbours(source[: MIN_IMAGES - 1], source[: MIN_IMAGES - 1]) is None
    assert neighbours(source[:MIN_IMAGES], source[:MIN_IMAGES]) is not None


def test_more_images_than_are_compared_and_features_of_another_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 25)
    own = neighbours(features(60, 3), features(60, 9, seed=1))
    assert own is not None
    assert own.images == 25


def test_only_tasks_without_a_head_are_compared_on_their_own_images() -> None:
    task = torch.tensor([0] * 30 + [1] * 30 + [2] * 5)
    source = [features(65, seed=i) for i in range(3)]
    found = neighbours_by_task(source, source, task, ["a", "b", "c"], [0])
    assert {name: (own.images, own.among) for name, own in found.items()} == {"b": (30, 30)}


@pytest.mark.full
def test_a_merge_reports_it(tmp_path: Path) -> None:
    sources = [replace(vit_source("class token", i, in_chans=3), name=f"s{i}", head=None) for i in (1, 2)]
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = merge(sources, method="average", data=images, output=tmp_path / "out")
    row = result.evaluation()["rows"]["merged"]["neighbours"]
    assert set(row) == {"s1", "s2"}
    assert row["s1"]["images"] == 40
    assert row["s1"]["nearest"] <= row["s1"]["among"] <= 40
    assert result.evaluation()["rows"]["ensemble"]["neighbours"] == {}
    card = (tmp_path / "out" / "merged" / "README.md").read_text()
    share = sum(own["among"] for own in row.values()) / 80
    sentence = (
        "The merged model finds the image that is nearest by a source's features among its 10 nearest on "
        f"{100 * share:.1f} % (mean over tasks) of 40 images held back from the merge; the plain average does on "
        f"{100 * share:.1f} %, by chance 25.6 %. There are no classifier heads, so there are no predictions to "
        "compare."
    )
    assert sentence in card.replace("\\", "")
    assert "| nearest image of the source among 10, % | s1 | s2 | mean |" in card
