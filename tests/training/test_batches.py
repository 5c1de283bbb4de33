"""The order of the images, and the inputs and targets of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fsmerge_cli.common.progress import silent
from fsmerge_cli.data.draw import NO_TASK, Images
from fsmerge_cli.data.transfer import Feed
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.training.batches import Batches, Order, ViewOptions
from fsmerge_cli.training.teachers import capture, network
from tests.support.sources import PLAIN, capture_in_memory, folding, with_heads

CPU = torch.device("cpu")
Make = Callable[..., Problem]


def test_a_filled_batch_repeats_all_images_equally_often() -> None:
    order = Order(torch.arange(5), batch_size=12, seed=0, filled=True)
    rows = torch.cat([order.batch(step) for step in range(5)])
    assert rows.bincount().tolist() == [12] * 5


def test_fixed_views_are_trained_on_in_addition_to_their_images(make_problem: Make) -> None:
    problem = make_problem(per_task=12, held=4)
    pixels = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    images = Images(pixels, problem.images.task, problem.images.train, problem.images.validation)
    copied = ViewOptions("shift", 3).copies(images, seed=0)
    assert len(copied) == 24 + 3 * len(images.train)
    assert torch.equal(copied.images[:24], images.images)
    assert torch.equal(copied.validation, images.validation)
    assert copied.task[24:].tolist() == images.task[images.train].repeat_interleave(3).tolist()
    assert torch.equal(ViewOptions("shift", 3).copies(images, seed=0).images, copied.images)
    assert ViewOptions("shift", "fresh").copies(images, 0) is images


def test_targets_of_new_views_are_computed_live(make_problem: Make) -> None:
    problem = make_problem()
    targets = capture_in_memory(problem, "own")
    order = Order(problem.images.train, 10, 0, filled=True)
    batches = Batches(order, ViewOptions(mixup=0.9), Feed(problem.images.images, CPU), targets, 0)
    batch = batches.batch(3)
    pixels = batch.pixels(batch.positions())
    assert torch.equal(pixels, batches.batch(3).pixels(batch.positions()))
    for i, source in enumerate(problem.sources):
        use = batch.mask[i].nonzero().flatten()
        assert torch.equal(batch.mask[i], problem.images.task[order.batch(3)] == i)
        torch.testing.assert_close(batch.targets(i, use), network(source)(pixels[use]))


def test_every_source_is_compared_on_auxiliary_images(make_problem: Make) -> None:
    problem = make_problem()
    task = problem.images.task.clone()
    task[:3] = NO_TASK
    images = replace(problem.images, task=task)
    for i in (0, 1):
        assert torch.equal(images.selected(i, "own"), (task == i) | (task == NO_TASK))
        assert len(replace(problem, images=images).task_images(i)) == int(((task == i) | (task == NO_TASK)).sum())
    kept = images.regroup([None, 0])
    assert kept.task.tolist() == [t if t == NO_TASK else 0 for t in task.tolist() if t != 0]


def test_fixed_views_are_mixed_but_not_augmented_again(make_problem: Make) -> None:
    problem = make_problem()
    view_options = ViewOptions("strong", 2, 0.5)
    images = view_options.copies(problem.images, 0)
    targets = capture(problem.sources, images, "all", problem.hardware, CPU, silent)
    batches = Batches(Order(images.train, 8, 0, filled=True), view_options, Feed(images.images, CPU), targets, 0)
    rows = batches.order.batch(3)
    batch = batches.batch(3)
    same = [torch.equal(new, images.images[row]) for new, row in zip(batch.pixels(batch.positions()), rows)]
    assert 0 < sum(same) < len(same)


@pytest.mark.full
@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"augment": "shift"}, {"augment": "shift", "views": 2}])
@pytest.mark.parametrize("method", [FSMerge, Distillation])
def test_training_on_new_views_is_reproducible_to_the_bit(make_problem: Make, method: Any, options: Any) -> None:
    problem = with_heads(make_problem())
    plain = {**PLAIN, "steps": 12, "lr": 1e-2, "targets": "all", "logit_weight": 0.5}
    chosen = method(**{**plain, **options})
    one, two = (chosen.fit(problem) for _ in range(2))
    assert one.trace.loss == two.trace.loss
    assert all(torch.equal(one.weights[n], two.weights[n]) for n in one.weights)
    assert one.trace.loss != method(**plain).fit(problem).trace.loss


@pytest.mark.parametrize("options", [{}, {"mixup": 0.5}, {"augment": "shift"}, {"augment": "shift", "views": 3}])
@pytest.mark.parametrize("batch", [4, 200])
def test_images_per_step_is_the_size_of_a_batch(make_problem: Make, options: Any, batch: int) -> None:
    problem = make_problem()
    method = folding(batch_size=batch, **options)
    images = method.prepare(problem).images
    order = Order(images.train, batch, 0, filled=method.view_options.fresh)
    batches = Batches(order, method.view_options, Feed(images.images, CPU), (), 0)
    assert method.images_per_step(len(problem.images.train)) == batches.size == len(order.batch(0))
