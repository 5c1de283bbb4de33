"""The second phase of FS-Merge: fine-tuning of the folded weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fsmerge_cli.methods import Problem
from tests.support.sources import folding

Make = Callable[..., Problem]


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_fine_tuning_trains_all_folded_weights(make_problem: Make, share: float) -> None:
    problem = make_problem()
    folded = folding(steps=20 - min(19, round(20 * share))).fit(problem)
    assert folded.stages == ()
    finetuned = folding(steps=20, finetune_share=share).fit(problem)
    assert len(finetuned.trace.loss) == 20
    assert finetuned.trace.loss[0] == folded.trace.loss[0]
    assert finetuned.maps is None
    unmoved = folding(steps=20, finetune_share=share, finetune_lr=1e-12).fit(problem)
    assert unmoved.finetuned
    for name, tensor in unmoved.weights.items():
        torch.testing.assert_close(tensor, folded.weights[name], atol=1e-6, rtol=1e-5)


@pytest.mark.full
def test_fine_tuning_that_makes_the_model_worse_is_discarded(make_problem: Make) -> None:
    problem = make_problem(per_task=60)
    rows = torch.randperm(len(problem.images), generator=torch.Generator().manual_seed(0))
    problem = replace(problem, images=replace(problem.images, train=rows[20:], validation=rows[:20]))
    finetuned = folding(steps=200, lr=0.01, finetune_share=0.5, finetune_lr=3.0).fit(problem)
    errors = dict(finetuned.trace.validation[-21:])  # of the fine-tuning phase
    assert min(errors, key=lambda step: errors[step]) == 100
    assert finetuned.trace.chosen_step == 100
    for name, tensor in finetuned.stages[0].weights.items():
        torch.testing.assert_close(finetuned.weights[name], tensor)
