from __future__ import annotations

import torch

from fsmerge_cli.alignment.closed_form.rows import sampled_rows, spread_rows

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
