from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.common.errors import DivergedError, TrainingError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Event, silent
from fsmerge_cli.methods import Problem
from fsmerge_cli.runs.result import parts
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.training.batches import Order
from fsmerge_cli.training.loop import train
from fsmerge_cli.training.objective import Batch, LossWeights, objective
from fsmerge_cli.training.snapshots import Snapshot, Snapshots
from fsmerge_cli.training.state import Schedule, Trace
from fsmerge_cli.training.teachers import capture
from tests.support.sources import folding
from tests.training.test_snapshots import fit

CPU = torch.device("cpu")
Make = Callable[..., Problem]


def start(problem: Problem, targets: str = "own") -> tuple[SuperNet, tuple]:
    weights = problem.weights()
    supernet = SuperNet(problem.plan, start_maps(problem.plan, weights, "full", "first"), weights)
    return supernet, capture(problem.sources, problem.images, targets, Hardware(eval_batch=5), CPU, silent)


def test_every_epoch_takes_every_image_once() -> None:
    order = Order(torch.arange(10, 17), batch_size=3, seed=0)
    rows = torch.cat([order.batch(step) for step in range(7)])
    for epoch in range(3):
        assert sorted(rows[7 * epoch : 7 * epoch + 7].tolist()) == list(range(10, 17))


def test_the_images_of_a_step_depend_only_on_seed_and_step() -> None:
    rows = torch.arange(50)
    forward = [Order(rows, 8, 3).batch(step) for step in range(20)]
    late = Order(rows, 8, 3)
    assert all(torch.equal(late.batch(step), forward[step]) for step in reversed(range(20)))
    assert not torch.equal(Order(rows, 8, 4).batch(0), forward[0])


@pytest.mark.parametrize("batch", [5, 6, 128])
def test_fewer_images_than_the_batch_are_all_taken(batch: int) -> None:
    assert torch.equal(Order(torch.arange(5), batch, 0).batch(3), torch.arange(5))


@pytest.mark.parametrize("targets", ["own", "all"])
def test_the_objective_is_the_documented_formula(make_problem: Make, targets: str) -> None:
    problem = make_problem()
    supernet, captured = start(problem, targets)
    rows = torch.tensor([0, 3, 13, 20, 23])
    z = supernet(problem.images.images[rows])
    expected = 0.0
    for i, own in enumerate(captured):
        use = [j for j, row in enumerate(rows) if targets == "all" or problem.images.task[row] == i]
        features = own.at(own.mask.nonzero().flatten())
        variance = ((features - features.mean(0)) ** 2).mean().item()
        errors = [(supernet.project(z[j], i) - own.at(rows[j : j + 1])).square().mean() / variance for j in use]
        expected += sum(errors) / len(errors) / 2
    found = objective(supernet, Batch.of(problem.images.images, captured, rows), captured)
    torch.testing.assert_close(found, expected)


def test_training_lowers_the_loss_and_reports_every_step(make_problem: Make) -> None:
    problem = make_problem()
    supernet, captured = start(problem)
    events: list[Event] = []
    schedule = Schedule(steps=60, batch_size=8, lr=1e-2, weight_decay=0.0, clip=1.0)
    trace = train(supernet, problem.images, captured, schedule, Hardware(), CPU, 0, events.append)
    assert len(trace.loss) == 60
    assert [e.done for e in events if e.phase == "train"] == list(range(1, 61))
    assert sum(trace.loss[-5:]) < 0.5 * sum(trace.loss[:5])
    assert trace.start_error[0] == pytest.approx(0, abs=1e-10)  # up to the order of summation
    assert trace.trainable == sum(p.numel() for p in supernet.parameters())


def test_without_a_validation_share_the_last_weights_are_kept(make_problem: Make) -> None:
    problem = make_problem(per_task=12)
    supernet, captured = start(problem)
    trace = train(supernet, problem.images, captured, Schedule(7, 8, 1e-3, 0.0, 1.0), Hardware(), CPU, 0, silent)
    assert trace.chosen_step == 7
    assert trace.validation == ()


def test_the_part_of_the_features_in_the_validation_loss_is_recorded(make_problem: Make) -> None:
    problem = make_problem(per_task=12, held=4)
    schedule = Schedule(steps=20, batch_size=8, lr=1e-3, weight_decay=0.0, clip=1.0)
    supernet, captured = start(problem)
    weights = LossWeights(logit_weight=0.5)
    trace = train(supernet, problem.images, captured, schedule, Hardware(), CPU, 0, silent, loss_weights=weights)
    assert [step for step, _ in trace.feature_part] == [step for step, _ in trace.validation]
    batch = Batch.of(problem.images.images, captured, problem.images.validation)
    features, whole = (objective(supernet, batch, captured, own).item() for own in (LossWeights(), weights))
    assert whole > features
    assert dict(trace.validation)[trace.chosen_step] == pytest.approx(whole, rel=1e-5)
    assert dict(trace.feature_part)[trace.chosen_step] == pytest.approx(features, rel=1e-5)
    rest = next(own["logits"] for own in parts(trace) if own["step"] == trace.chosen_step)
    assert rest == pytest.approx(whole - features, rel=1e-3)


@pytest.mark.full
def test_the_best_weights_on_the_validation_share_are_kept(make_problem: Make) -> None:
    problem = make_problem(per_task=12, held=4)
    schedule = Schedule(steps=200, batch_size=8, lr=0.05, weight_decay=0.0, clip=1.0)  # long enough to overfit
    supernet, captured = start(problem)
    trace = train(supernet, problem.images, captured, schedule, Hardware(), CPU, 0, silent)
    best = min(trace.validation, key=lambda entry: entry[1])
    assert trace.chosen_step == best[0] < 200
    held = problem.images.validation
    error = objective(supernet, Batch.of(problem.images.images, captured, held), captured)
    assert error.item() == pytest.approx(best[1], rel=1e-5)


def test_validation_images_are_never_trained_on(make_problem: Make) -> None:
    problem = make_problem(per_task=12, held=4)
    changed = problem.images.images.clone()
    changed[problem.images.validation] = 0.5
    schedule = Schedule(steps=9, batch_size=8, lr=1e-3, weight_decay=0.0, clip=1.0)
    losses = []
    for images in (problem.images, replace(problem.images, images=changed)):
        own = replace(problem, images=images)
        supernet, captured = start(own)
        losses.append(train(supernet, images, captured, schedule, Hardware(), CPU, 0, silent).loss)
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_is_reported_with_advice(make_problem: Make) -> None:
    problem = make_problem()
    with pytest.raises(TrainingError) as error:
        folding(steps=50, lr=1e30, clip=1e30).fit(problem)
    assert str(error.value).startswith("the loss became ")
    assert str(error.value).endswith(
        ". Try a third of the learning rate (method.lr=...), maps of lower rank, or method.retries=2, which "
        "restarts with half the learning rate."
    )


def test_bf16_is_close_to_fp32(make_problem: Make) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        problem = make_problem(hardware=Hardware(precision=precision))
        losses[precision] = folding(steps=20).fit(problem).trace.loss
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"][-1] == pytest.approx(losses["fp32"][-1], rel=0.05)


def test_a_training_of_one_step(make_problem: Make) -> None:
    assert len(folding(steps=1).fit(make_problem()).trace.loss) == 1


def test_joined_traces_report_the_learning_rate_of_the_restarted_training() -> None:
    plain, restarted = Trace(loss=(1.0,), lr=1e-3), Trace(loss=(1.0,), lr=5e-3, restarts=1)
    for trace in (
        plain.then(restarted, ()),
        restarted.then(plain, ()),
        Trace().then(plain, ()).then(restarted, ()),
    ):
        assert (trace.lr, trace.restarts) == (5e-3, 1)
    assert Trace().then(plain, ()).lr == 1e-3


@pytest.mark.full
def test_a_batch_that_does_not_fit_into_memory_is_computed_in_parts_with_the_same_weights(
    make_problem: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(make_problem, "kd", None)
    assert whole.trace.images_at_once == 0
    from fsmerge_cli.methods.kd import StudentNetwork

    forward = StudentNetwork.forward

    def small(self: StudentNetwork, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images)

    monkeypatch.setattr(StudentNetwork, "forward", small)
    parts = fit(make_problem, "kd", None)
    assert parts.trace.images_at_once == 4  # 16, 8, 4
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], tensor, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(StudentNetwork, "forward", lambda self, images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(make_problem, "kd", None)


def test_too_little_memory_for_one_image_is_reported(make_problem: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsmerge_cli.methods.kd import StudentNetwork

    forward = StudentNetwork.forward

    def never(self: StudentNetwork, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return forward(self, images)

    monkeypatch.setattr(StudentNetwork, "forward", never)
    with pytest.raises(TrainingError) as error:
        fit(make_problem, "kd", None)
    assert str(error.value) == (
        "out of memory with 1 image at a time. Pass a smaller method.batch_size, hardware.checkpointing=true, or "
        "method.maps=low_rank."
    )


def test_a_diverged_training_keeps_the_last_finite_state(make_problem: Make, tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as error:
        fit(make_problem, "kd", tmp_path, lr=1e30, clip=1e30, steps=30)
    assert str(error.value).endswith(
        "Try a third of the learning rate (method.lr=...), maps of lower rank, or method.retries=2, which "
        "restarts with half the learning rate."
    )
    for file in tmp_path.glob("training*"):
        tensors, _ = Snapshot(Snapshots(tmp_path), file).load() or ({}, {})
        assert all(bool(t.isfinite().all()) for n, t in tensors.items() if n.startswith("student."))


@pytest.mark.full
def test_retries_halve_the_learning_rate(make_problem: Make, tmp_path: Path) -> None:
    made = fit(make_problem, "kd", tmp_path, lr=1e-3, retries=3)
    assert made.trace.lr == 1e-3

    from fsmerge_cli.methods import base

    rates = []

    def diverging(student: object, images: object, targets: object, schedule: Any, *rest: object) -> Any:
        rates.append(schedule.lr)
        if schedule.lr > 3e-3:
            raise DivergedError("inf")
        return train(student, images, targets, schedule, *rest)

    train = base.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "train", diverging)
        again = fit(make_problem, "kd", None, lr=8e-3, retries=3)
    assert rates == [8e-3, 4e-3, 2e-3]
    assert again.trace.lr == 2e-3
    plain = fit(make_problem, "kd", None, lr=2e-3, matrix_lr=0.0025)
    assert all(torch.equal(again.weights[n], t) for n, t in plain.weights.items())
