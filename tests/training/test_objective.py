"""The losses on the logits: distillation, cross-task weight and outlier exposure."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fsmerge_cli.common.inputs import reads
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.kd import StudentNetwork
from fsmerge_cli.training.objective import (
    TEMPERATURE,
    Batch,
    LossWeights,
    confidence_penalty,
    divergence,
    objective,
)
from fsmerge_cli.training.teachers import network
from tests.support.encoders import encoder_source, text_problem
from tests.support.sources import capture_in_memory, with_heads

Make = Callable[..., Problem]


def test_logits_are_compared_by_their_softened_divergence(make_problem: Make) -> None:
    problem = with_heads(make_problem())
    targets = capture_in_memory(problem)
    student = StudentNetwork(problem, "average", "linear")
    batch = Batch.of(problem.images.images, targets, torch.tensor([0, 5, 13, 20]))
    plain, both = (objective(student, batch, targets, LossWeights(weight)) for weight in (0.0, 0.7))
    z = student(batch.pixels(batch.positions()))
    expected = 0.0
    for i, source in enumerate(problem.sources):
        teacher = source.head(batch.targets(i, batch.positions())) / TEMPERATURE
        pupil = source.head(student.project(z, i)) / TEMPERATURE
        p = teacher.softmax(1)
        expected += (p * (p.log() - pupil.softmax(1).log())).sum(1).mean().item() * TEMPERATURE**2 / 2
    assert (both - plain).item() == pytest.approx(
        0.7 * expected, rel=1e-4, abs=1e-6
    )  # differences of larger losses


def test_cross_task_weight_scales_the_divergence_on_images_of_other_tasks(make_problem: Make) -> None:
    problem = with_heads(make_problem())
    targets = capture_in_memory(problem)
    student = StudentNetwork(problem, "average", "linear")
    batch = Batch.of(problem.images.images, targets, torch.tensor([0, 5, 13, 20, 22]))

    def loss(loss_weights: LossWeights) -> float:
        return objective(student, batch, targets, loss_weights).item()

    plain, none, whole = loss(LossWeights()), loss(LossWeights(1.0, cross_task_weight=0.0)), loss(LossWeights(1.0))
    z, expected = student(batch.pixels(batch.positions())), 0.0
    for i, source in enumerate(problem.sources):
        use = (~batch.other_task[i]).nonzero().flatten()
        assert 0 < len(use) < 5
        logits = source.head(student.project(z[use], i)), source.head(batch.targets(i, use))
        expected += divergence(*logits).sum().item() / 5 / 2
    assert none - plain == pytest.approx(expected, abs=4e-6)  # fp32 differences of much larger losses
    assert loss(LossWeights(1.0, cross_task_weight=0.3)) == pytest.approx(none + 0.3 * (whole - none), rel=1e-4)
    assert whole - none > 0.01


def test_outlier_exposure_penalises_confidence_on_images_of_other_tasks(make_problem: Make) -> None:
    problem = with_heads(make_problem())
    targets = capture_in_memory(problem, "own")
    student = StudentNetwork(problem, "average", "linear")
    rows = torch.tensor([0, 1, 5, 13, 20])
    batch = Batch.of(problem.images.images, targets, rows)
    plain, both = (objective(student, batch, targets, LossWeights(0.0, weight)) for weight in (0.0, 0.3))
    z = student(problem.images.images[rows])
    expected = 0.0
    for i, source in enumerate(problem.sources):
        probabilities = source.head(student.project(z[problem.images.task[rows] != i], i)).softmax(1)
        expected += (-(probabilities.log()).mean(1) - math.log(3)).mean().item() / 2
    assert (both - plain).item() == pytest.approx(0.3 * expected, abs=4e-6)  # as above
    assert confidence_penalty(torch.zeros(4, 7)).item() == pytest.approx(0, abs=1e-6)


def test_a_mixture_of_two_tasks_is_not_of_another_task_for_either(make_problem: Make) -> None:
    problem = make_problem()
    targets = capture_in_memory(problem)
    rows, other = torch.tensor([0, 0, 15, 15]), torch.tensor([1, 16, 16, 1])
    batch = Batch.live(problem.images.images[rows], targets, rows, other)
    assert batch.other_task.tolist() == [[False, False, True, False], [True, False, False, False]]


def test_the_divergence_of_equal_predictions_is_zero_for_shifted_logits() -> None:
    logits = torch.randn(5, 4)
    assert divergence(logits, logits + 3).abs().max().item() == pytest.approx(0, abs=1e-5)
    assert divergence(logits, logits.flip(1)).min().item() > 0


def test_every_token_that_is_read_is_a_row_of_the_loss() -> None:
    sources = [encoder_source("BERT, tokens", seed) for seed in (1, 2)]
    problem = text_problem(sources, per_task=5)
    targets = capture_in_memory(problem)
    student = StudentNetwork(problem, "average", "linear")
    rows, weights = torch.tensor([7, 0, 3, 9]), LossWeights(0.7, outlier_exposure=0.3, cross_task_weight=0.5)
    batch, texts = Batch.of(problem.images.images, targets, rows), problem.images.images[rows]
    whole = objective(student, batch, targets, weights)
    expected, counts = 0.0, reads(texts)
    for i, (source, own) in enumerate(zip(sources, targets)):
        total, outliers, lengths = [], [], []
        for text, task in zip(texts, problem.images.task[rows].tolist()):
            target, z = network(source)(text[None]), student.project(student(text[None]), i)
            error = (z - target).square().sum(1) / (target.shape[1] * own.variance)
            factor = 1.0 if task == i else weights.cross_task_weight
            total.append(error + weights.logit_weight * factor * divergence(source.head(z), source.head(target)))
            outliers += [confidence_penalty(source.head(z))] if task != i else []
            lengths += [len(z)] if task != i else []
        outlier = torch.stack(outliers).sum() / sum(lengths)
        expected += (torch.cat(total).mean() + weights.outlier_exposure * outlier).item() / 2
    assert whole.item() == pytest.approx(expected, rel=1e-5)
    parts = [
        objective(student, batch, targets, weights, part, batch.counts())
        for part in torch.tensor([[0, 2], [1, 3]])
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)
    live = Batch.live(texts, targets, rows, rows)
    assert objective(student, live, targets, weights).item() == pytest.approx(whole.item(), rel=1e-5)
    assert int(counts.sum()) > len(rows)
