from __future__ import annotations

import torch

from fsmerge_cli.methods.task_vectors.widen import Widen
from tests.methods.test_task_vectors_folded import problem, trained


def test_a_table_of_positions_has_one_score_per_position_and_a_kernel_one_per_pixel() -> None:
    given = problem(trained("class token"))
    assert given.base is not None
    found, method = Widen().fit(given).weights, Widen()
    for name, outputs in (("pos_embed", -1), ("patch_embed.proj.weight", 0)):
        base = given.base.weights[name].double()
        moves = [s.weights[name].double() - base for s in given.sources]
        flat = [t.movedim(outputs, 0).flatten(1) for t in (base, *moves)]
        scores = method.of_columns(torch.stack(flat[1:]), flat[0])
        total = sum(s * t for s, t in zip(scores, flat[1:]))
        there = found[name].double().movedim(outputs, 0).flatten(1)
        torch.testing.assert_close(there, flat[0] + total, rtol=1e-5, atol=1e-6)
        assert scores.shape == (2, flat[0].shape[1])


def test_columns_that_moved_most_get_the_score_and_the_others_a_softmax() -> None:
    base = torch.eye(4, dtype=torch.float64)
    lengths = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    method = Widen(score=0.75)
    first = 1 / (1 + torch.tensor([0.75, 0.25, -0.25, -0.75], dtype=torch.float64).exp())  # of ranks 0 to 3/4
    expected = torch.stack([first, first.flip(0)])
    expected[0, 2:], expected[1, :2] = 0.75, 0.75
    ranked = torch.tensor([[0, 0.25, 0.5, 0.75], [0.75, 0.5, 0.25, 0]], dtype=torch.float64)
    torch.testing.assert_close(method.scores(ranked), expected)
    turns = torch.tensor([[0.0, 0.25, 0.5, 0.75]] * 2, dtype=torch.float64)  # no column turns: in their order
    found = method.of_columns(lengths[:, None] * base, base)
    torch.testing.assert_close(found, (expected + method.scores(turns)) / 2)
