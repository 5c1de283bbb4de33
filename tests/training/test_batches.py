from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fsmerge_cli.alignment.matching import unmerging_start
from fsmerge_cli.alignment.statistics import unmerging
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import silent
from fsmerge_cli.data.draw import NO_TASK, Images
from fsmerge_cli.data.images.augment import Augment, augmentation, mixed, renewed
from fsmerge_cli.data.transfer import Feed
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation, StudentNetwork
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.training.batches import Batches, Order, ViewOptions
from fsmerge_cli.training.objective import (
    TEMPERATURE,
    Batch,
    LossWeights,
    confidence_penalty,
    divergence,
    objective,
)
from fsmerge_cli.training.teachers import capture, network
from tests.support.sources import PLAIN, folding, mlp_source

CPU = torch.device("cpu")
Make = Callable[..., Problem]
AUGMENTS: tuple[Augment, ...] = ("shift", "paper", "strong")


def pictures(n: int, channels: int = 1, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def headed(problem: Problem) -> Problem:
    sources = [
        replace(s, head=Head(torch.randn(3, s.arch.features), None, ("a", "b", "c"))) for s in problem.sources
    ]
    return replace(problem, sources=sources)


def captured(problem: Problem, targets: str = "all") -> Any:
    return capture(problem.sources, problem.images, targets, Hardware(features="memory"), CPU, silent)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmented_pictures_stay_pictures_and_differ(augment: Augment, channels: int) -> None:
    before = pictures(12, channels)
    after, other = renewed(before, augment, 0.0, seed=0, step=0)
    assert torch.equal(other, torch.arange(12))
    assert after.shape == before.shape
    assert 0 <= after.min() <= after.max() <= 1
    assert not any(torch.equal(a, b) for a, b in zip(after, before))


@pytest.mark.parametrize(("augment", "mixup"), [("strong", 0.0), ("none", 0.9), ("paper", 0.5)])
def test_new_questions_depend_on_seed_and_step_alone(augment: Augment, mixup: float) -> None:
    def ask(seed: int, step: int) -> Tensor:
        torch.manual_seed(seed + step)  # whatever the global generator does
        before = torch.random.get_rng_state()
        found = renewed(pictures(9), augment, mixup, seed, step)[0]
        assert torch.equal(before, torch.random.get_rng_state())
        return found

    assert torch.equal(ask(3, 4), ask(3, 4))
    assert not torch.equal(ask(3, 4), ask(3, 5))
    assert not torch.equal(ask(3, 4), ask(2, 4))


def test_a_mixture_keeps_half_of_its_own_image_or_more() -> None:
    numbers = torch.arange(400.0)[:, None, None, None].expand(400, 1, 8, 8)
    after, other = mixed(numbers, 0.5, torch.Generator().manual_seed(0))
    changed = (after != numbers).flatten(1).any(1)
    assert 0.4 < changed.double().mean() < 0.6
    blended = torch.tensor([len(set(image.flatten().tolist())) == 1 for image in after]) & changed
    assert 0.2 < blended.double().mean() < 0.3  # one half of the mixtures is blended, the other pasted
    pasted = changed & ~blended
    own = (after == numbers).flatten(1).double().mean(1)
    assert own[pasted].min() >= 0.5
    assert bool((other != torch.arange(400))[changed].all())
    assert 0.4 < (other == torch.arange(400)).double().mean() < 0.6
    share = (after[blended, 0, 0, 0] - numbers[blended, 0, 0, 0]) / (other - torch.arange(400))[blended]
    assert 0 <= share.min() <= share.max() <= 0.5 + 1e-6


def test_pasted_pixels_are_one_rectangle_of_the_other_image() -> None:
    numbers = torch.arange(60.0)[:, None, None, None].expand(60, 1, 12, 12)
    after, _ = mixed(numbers, 0.99, torch.Generator().manual_seed(5))
    seen = 0
    for i, image in enumerate(after[:, 0]):
        values = set(image.flatten().tolist()) - {float(i)}
        if len(values) != 1 or not (image == i).any():
            continue
        rows, columns = (image != i).any(1).nonzero(), (image != i).any(0).nonzero()
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert int((image != i).sum()) == int(height * width)
        seen += 1
    assert seen > 10


def test_a_batch_of_fresh_questions_is_filled_up_and_repeats_every_image_alike() -> None:
    order = Order(torch.arange(5), batch_size=12, seed=0, filled=True)
    drawn = torch.cat([order.batch(step) for step in range(5)])
    assert drawn.bincount().tolist() == [12] * 5


def test_fixed_copies_are_trained_on_beside_their_images(make_problem: Make) -> None:
    problem = make_problem(per_task=12, held=4)
    images = Images(pictures(24), problem.images.task, problem.images.train, problem.images.validation)
    copied = ViewOptions("shift", 3).copies(images, seed=0)
    assert len(copied) == 24 + 3 * len(images.train)
    assert torch.equal(copied.images[:24], images.images)
    assert torch.equal(copied.validation, images.validation)
    assert copied.task[24:].tolist() == images.task[images.train].repeat_interleave(3).tolist()
    assert torch.equal(ViewOptions("shift", 3).copies(images, seed=0).images, copied.images)
    assert ViewOptions("shift", "fresh").copies(images, 0) is images


def test_what_the_sources_are_asked_anew_they_answer_anew(make_problem: Make) -> None:
    problem = make_problem()
    targets = captured(problem, "own")
    order = Order(problem.images.train, 10, 0, filled=True)
    questions = Batches(order, ViewOptions(mixup=0.9), Feed(problem.images.images, CPU), targets, 0)
    batch = questions.batch(3)
    pixels = batch.pixels(batch.positions())
    assert torch.equal(pixels, questions.batch(3).pixels(batch.positions()))
    for i, source in enumerate(problem.sources):
        use = batch.wanted[i].nonzero().flatten()
        assert torch.equal(batch.wanted[i], problem.images.task[order.batch(3)] == i)
        torch.testing.assert_close(batch.answers(i, use), network(source)(pixels[use]))


def test_an_image_of_no_task_is_asked_of_everyone(make_problem: Make) -> None:
    problem = make_problem()
    task = problem.images.task.clone()
    task[:3] = NO_TASK
    images = replace(problem.images, task=task)
    for i in (0, 1):
        assert torch.equal(images.asked(i, "own"), (task == i) | (task == NO_TASK))
        assert len(replace(problem, images=images).own_images(i)) == int(((task == i) | (task == NO_TASK)).sum())
    kept = images.regroup([None, 0])
    assert kept.task.tolist() == [t if t == NO_TASK else 0 for t in task.tolist() if t != 0]


def test_the_heads_answers_are_compared_by_their_softened_divergence(make_problem: Make) -> None:
    problem = headed(make_problem())
    targets = captured(problem)
    student = StudentNetwork(problem, "average", "linear")
    batch = Batch.of(problem.images.images, targets, torch.tensor([0, 5, 13, 20]))
    plain, both = (objective(student, batch, targets, LossWeights(weight)) for weight in (0.0, 0.7))
    z = student(batch.pixels(batch.positions()))
    expected = 0.0
    for i, source in enumerate(problem.sources):
        teacher = source.head(batch.answers(i, batch.positions())) / TEMPERATURE
        pupil = source.head(student.project(z, i)) / TEMPERATURE
        p = teacher.softmax(1)
        expected += (p * (p.log() - pupil.softmax(1).log())).sum(1).mean().item() * TEMPERATURE**2 / 2
    assert (both - plain).item() == pytest.approx(0.7 * expected, rel=1e-4)


def test_answers_to_images_of_other_tasks_count_as_much_as_is_asked(make_problem: Make) -> None:
    problem = headed(make_problem())
    targets = captured(problem)
    student = StudentNetwork(problem, "average", "linear")
    batch = Batch.of(problem.images.images, targets, torch.tensor([0, 5, 13, 20, 22]))

    def loss(loss_weights: LossWeights) -> float:
        return objective(student, batch, targets, loss_weights).item()

    plain, none, whole = loss(LossWeights()), loss(LossWeights(1.0, cross_task_weight=0.0)), loss(LossWeights(1.0))
    z, own = student(batch.pixels(batch.positions())), 0.0
    for i, source in enumerate(problem.sources):
        use = (~batch.other_task[i]).nonzero().flatten()
        assert 0 < len(use) < 5
        answers = source.head(student.project(z[use], i)), source.head(batch.answers(i, use))
        own += divergence(*answers).sum().item() / 5 / 2
    assert none - plain == pytest.approx(own, abs=4e-6)  # fp32 differences of much larger losses
    assert loss(LossWeights(1.0, cross_task_weight=0.3)) == pytest.approx(none + 0.3 * (whole - none), rel=1e-4)
    assert whole - none > 0.01


def test_a_heads_opinion_of_other_tasks_images_costs_its_distance_from_none(make_problem: Make) -> None:
    problem = headed(make_problem())
    targets = captured(problem, "own")
    student = StudentNetwork(problem, "average", "linear")
    rows = torch.tensor([0, 1, 5, 13, 20])
    batch = Batch.of(problem.images.images, targets, rows)
    plain, both = (objective(student, batch, targets, LossWeights(0.0, weight)) for weight in (0.0, 0.3))
    z = student(problem.images.images[rows])
    expected = 0.0
    for i, source in enumerate(problem.sources):
        shares = source.head(student.project(z[problem.images.task[rows] != i], i)).softmax(1)
        expected += (-(shares.log()).mean(1) - math.log(3)).mean().item() / 2
    assert (both - plain).item() == pytest.approx(0.3 * expected, abs=4e-6)  # as above
    assert confidence_penalty(torch.zeros(4, 7)).item() == pytest.approx(0, abs=1e-6)


def test_a_mixture_of_two_tasks_is_foreign_to_neither(make_problem: Make) -> None:
    problem = make_problem()
    targets = captured(problem)
    rows, other = torch.tensor([0, 0, 15, 15]), torch.tensor([1, 16, 16, 1])
    batch = Batch.asked(problem.images.images[rows], targets, rows, other)
    assert batch.other_task.tolist() == [[False, False, True, False], [True, False, False, False]]


def test_equal_answers_have_no_divergence_whatever_is_added_to_all_logits() -> None:
    logits = torch.randn(5, 4)
    assert divergence(logits, logits + 3).abs().max().item() == pytest.approx(0, abs=1e-5)
    assert divergence(logits, logits.flip(1)).min().item() > 0


def test_least_squares_find_the_maps_between_scrambled_copies(make_problem: Make) -> None:
    """Source 2 is source 1 with its features permuted and scaled."""
    first = mlp_source("a", [8, 6], 0)
    mixing = torch.eye(6)[[2, 0, 1, 5, 3, 4]] * torch.arange(1.0, 7)  # commutes with ReLU
    weights = {n: t.clone() for n, t in first.weights.items()}
    weights["fc1.weight"], weights["fc1.bias"] = mixing @ weights["fc1.weight"], mixing @ weights["fc1.bias"]
    problem = make_problem([first, replace(first, name="b", weights=weights)], per_task=200)
    plan = problem.plan
    networks = [network(s) for s in problem.sources]
    found = unmerging(plan, networks, problem.images.images, 64, CPU, 1e-12)
    inside = [port for port in plan.reads if port != plan.features]
    for port in inside:  # the hidden layer is one and the same in both
        x = networks[0].get_submodule("fc0")(problem.images.images.flatten(1)).relu()
        torch.testing.assert_close(x @ found[port, 1].T, x, atol=1e-3, rtol=1e-3)
    z, expected = (own(problem.images.images) for own in networks)
    torch.testing.assert_close(z @ found[plan.features, 1].T, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("structure", ["full", "low_rank", "diagonal", "heads"])
def test_an_aligned_start_is_source_1_itself(make_problem: Make, structure: str) -> None:
    problem = make_problem()
    unmerge = unmerging_start(problem)
    weights = problem.weights()
    maps = start_maps(problem.plan, weights, structure, "aligned", 3, unmerge=unmerge)  # type: ignore[arg-type]
    folded = fold(problem.plan, maps, weights)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(folded[name], tensor)
    given, kept = unmerge[problem.plan.features, 1], maps.read(problem.plan.features, 1).dense()
    if structure == "full":
        torch.testing.assert_close(kept, given)
    elif structure == "diagonal":
        torch.testing.assert_close(kept, given.diagonal().diag())
    elif structure == "low_rank":
        rest = given - given.diagonal().diag()
        P, s, Qh = torch.linalg.svd(rest)
        best = given.diagonal().diag() + P[:, :3] * s[:3] @ Qh[:3]
        torch.testing.assert_close(kept, best, atol=1e-5, rtol=1e-4)
    else:  # spaces without heads are as with low_rank
        like = start_maps(problem.plan, weights, "low_rank", "aligned", 3, unmerge=unmerge)
        torch.testing.assert_close(kept, like.read(problem.plan.features, 1).dense())


@pytest.mark.parametrize("kind", [FSMerge, Distillation])
def test_an_aligned_start_lowers_the_first_error(make_problem: Make, kind: Any) -> None:
    method = kind(**{**PLAIN, "steps": 1, "lr": 1e-12, "start": "aligned"})
    problem = make_problem(per_task=60)
    plain = replace(method, start="first").fit(problem).trace.start_error
    aligned = method.fit(problem).trace.start_error
    assert aligned[0] == pytest.approx(plain[0], abs=1e-9)
    assert aligned[1] < 0.5 * plain[1]


def test_of_another_width_an_aligned_start_is_the_first(make_problem: Make) -> None:
    sources = [mlp_source(n, [8, 6], i) for i, n in enumerate("ab")]
    problem = replace(make_problem(sources), plan=compile_plan(sources, (8, 4)))
    one, two = (folding(steps=2, start=start, width=(8, 4)).fit(problem) for start in ("aligned", "first"))
    assert all(torch.equal(one.weights[n], two.weights[n]) for n in one.weights)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_after_the_release_all_weights_are_trained(make_problem: Make, share: float) -> None:
    problem = make_problem()
    folded = folding(steps=20 - min(19, round(20 * share))).fit(problem)
    assert folded.stages == ()
    free = folding(steps=20, finetune_share=share).fit(problem)
    assert len(free.trace.loss) == 20
    assert free.trace.loss[0] == folded.trace.loss[0]
    assert free.maps is None
    still = folding(steps=20, finetune_share=share, finetune_lr=1e-12).fit(problem)
    assert still.finetuned
    for name, tensor in still.weights.items():
        torch.testing.assert_close(tensor, folded.weights[name], atol=1e-6, rtol=1e-5)


def test_what_a_release_spoils_is_not_kept(make_problem: Make) -> None:
    problem = make_problem(per_task=60)
    rows = torch.randperm(len(problem.images), generator=torch.Generator().manual_seed(0))
    problem = replace(problem, images=replace(problem.images, train=rows[20:], validation=rows[:20]))
    free = folding(steps=200, lr=0.01, finetune_share=0.5, finetune_lr=3.0).fit(problem)
    errors = dict(free.trace.validation[-21:])  # the release's own
    assert min(errors, key=lambda step: errors[step]) == 100
    assert free.trace.chosen_step == 100
    for name, tensor in free.stages[0].weights.items():
        torch.testing.assert_close(free.weights[name], tensor)


def test_fixed_copies_are_mixed_but_not_augmented_again(make_problem: Make) -> None:
    problem = make_problem()
    view_options = ViewOptions("strong", 2, 0.5)
    images = view_options.copies(problem.images, 0)
    targets = capture(problem.sources, images, "all", problem.hardware, CPU, silent)
    questions = Batches(Order(images.train, 8, 0, filled=True), view_options, Feed(images.images, CPU), targets, 0)
    rows = questions.order.batch(3)
    batch = questions.batch(3)
    same = [torch.equal(new, images.images[row]) for new, row in zip(batch.pixels(batch.positions()), rows)]
    assert 0 < sum(same) < len(same)


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"augment": "shift"}, {"augment": "shift", "views": 2}])
@pytest.mark.parametrize("method", [FSMerge, Distillation])
def test_training_on_more_questions_repeats_to_the_bit(make_problem: Make, method: Any, options: Any) -> None:
    problem = headed(make_problem())
    plain = {**PLAIN, "steps": 12, "lr": 1e-2, "targets": "all", "logit_weight": 0.5}
    chosen = method(**{**plain, **options})
    one, two = (chosen.fit(problem) for _ in range(2))
    assert one.trace.loss == two.trace.loss
    assert all(torch.equal(one.weights[n], two.weights[n]) for n in one.weights)
    assert one.trace.loss != method(**plain).fit(problem).trace.loss


def test_the_transforms_are_made_once() -> None:
    assert augmentation("paper", (16, 16)) is augmentation("paper", (16, 16))
    assert torch.equal(augmentation("none", (4, 4))(pictures(1)), pictures(1))


@pytest.mark.parametrize("options", [{}, {"mixup": 0.5}, {"augment": "shift"}, {"augment": "shift", "views": 3}])
@pytest.mark.parametrize("batch", [4, 200])
def test_a_method_knows_how_many_images_a_step_has(make_problem: Make, options: Any, batch: int) -> None:
    problem = make_problem()
    method = folding(batch_size=batch, **options)
    images = method.prepare(problem).images
    order = Order(images.train, batch, 0, filled=method.view_options.fresh)
    taken = Batches(order, method.view_options, Feed(images.images, CPU), (), 0)
    assert method.images_per_step(len(problem.images.train)) == taken.size == len(order.batch(0))
