from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form.folds import FoldMoments
from fsmerge_cli.alignment.closed_form.rows import sampled_rows, spread_rows
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.methods.pleas import PLeaS
from tests.alignment.test_closed_form import pixels, solve
from tests.support.resnets import resnet_source

WEIGHTS = torch.tensor([9.0, 1.0, 0.5, 0.0, 1.0, 2.0])


def test_enough_tokens_are_all_of_them() -> None:
    stream = torch.zeros(3, 6, 2)
    random = torch.Generator().manual_seed(0)
    expected = spread_rows(WEIGHTS, stream)
    found = sampled_rows(WEIGHTS, stream, 5, random)
    assert expected is not None
    assert found is not None
    assert torch.equal(found, expected)
    assert sampled_rows(None, stream, 6, random) is None


def test_a_sample_has_the_size_that_was_asked_for_and_the_same_sums() -> None:
    stream = torch.zeros(20_000, 6, 2)
    found = sampled_rows(WEIGHTS, stream, 3.0, torch.Generator().manual_seed(0))
    assert found is not None
    found = found.view(-1, 6)
    assert abs(float((found > 0).sum(1).float().mean()) - 3.0) < 0.02
    torch.testing.assert_close(found.mean(0).float(), WEIGHTS, rtol=0.05, atol=0.0)
    assert bool((found[:, 0] == 9.0).all())  # what matters most is always there
    assert bool((found[:, 3] == 0.0).all())


def test_without_weights_every_token_is_as_likely() -> None:
    found = sampled_rows(None, torch.zeros(20_000, 4, 2), 1.0, torch.Generator().manual_seed(0))
    assert found is not None
    assert sorted(found.unique().tolist()) == [0.0, 4.0]
    torch.testing.assert_close(found.view(-1, 4).mean(0), torch.ones(4).double(), rtol=0.05, atol=0.0)


@pytest.mark.full
@pytest.mark.parametrize("method", [FSClosedForm(views=0), PLeaS()], ids=["fs_closed_form", "pleas"])
def test_convolutions_are_fitted_at_about_rows_per_unit_positions_per_regressor(
    monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    rows: dict[FoldMoments, int] = {}
    add = FoldMoments.add

    def counted(own: FoldMoments, x: Tensor, y: Tensor, folds: Tensor, weight: Tensor | None = None) -> None:
        rows[own] = rows.get(own, 0) + len(x)
        add(own, x, y, folds, weight)

    monkeypatch.setattr(FoldMoments, "add", counted)
    sources = [resnet_source("deep stem, average pooling on the shortcut", seed) for seed in (1, 2)]
    images, found = pixels(sources[0], 20), dict[float, list[bool]]()
    for asked in (2.0, 100.0):
        rows.clear()
        solve(replace(method, rows_per_unit=asked), sources, images)
        regressors = {own: len(torch.as_tensor(own.parts[0].x)) for own in rows}
        found[asked] = [count <= 2 * regressors[own] + len(images) for own, count in rows.items()]
    assert all(found[2.0])
    assert not all(found[100.0])
