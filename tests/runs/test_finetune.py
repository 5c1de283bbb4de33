"""`fsmerge finetune`, training: the same weights as an ordinary loop, phases, early stopping, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fsmerge_cli.common.errors import (
    DivergedError,
)
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.data import labelled
from fsmerge_cli.training import classifier
from fsmerge_cli.training.batches import Order
from tests.support.finetuning import (
    LOW,
    VIT,
    small_finetune,
    weight_bytes,
)

pytestmark = pytest.mark.full


def test_training_all_weights_equals_an_ordinary_loop() -> None:
    data = {"images_per_task": 30}  # too few for a validation share
    done = small_finetune(
        training={"head_steps": 0, "steps": 7, "batch_size": 8, "label_smoothing": 0.2}, data=data
    )
    start = small_finetune(
        training={"head_steps": 1, "steps": 0, "head_lr": 1e-12, "weight_decay": 0.0}, data=data
    )
    # The same with plain torch.
    backbone = start.backbone().requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "finetune", "head"))
        head = torch.nn.Linear(16, 5)
    assert done.source.head is not None
    images = labelled_digits(30)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.003, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.003, total_steps=7, anneal_strategy="linear", cycle_momentum=False
    )
    order = Order(torch.arange(30), 8, 0)
    losses = []
    for step in range(7):
        pixels, classes = images[0][order.batch(step)], images[1][order.batch(step)]
        loss = F.cross_entropy(head(backbone(pixels)), classes, label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        cycle.step()
        losses.append(loss.item())
    assert done.trace.loss == pytest.approx(losses, rel=1e-5)
    for name, tensor in backbone.state_dict().items():
        torch.testing.assert_close(done.source.weights[name], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done.source.head.weight, head.weight.detach(), rtol=1e-4, atol=1e-5)


def labelled_digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sampled images in the order of the pool."""
    from fsmerge_cli.common.seeding import generator
    from fsmerge_cli.data import DATASETS, Task
    from fsmerge_cli.data.base import ToPixels

    images = DATASETS["digits"]().build("train", Task("low", LOW), ToPixels((1, 8, 8)))  # type: ignore[call-arg]
    assert images is not None
    rows = torch.randperm(len(images), generator=generator(0, "finetune", "images")).tolist()[:count]
    pairs = [images[row] for row in sorted(rows)]
    return torch.stack([p for p, _ in pairs]), torch.tensor([c for _, c in pairs])


def test_training_only_the_head_does_not_change_the_backbone() -> None:
    before = small_finetune(training={"head_steps": 1, "steps": 0, "head_lr": 1e-12})
    after = small_finetune(training={"head_steps": 300, "steps": 0, "head_lr": 0.05})
    assert all(torch.equal(t, before.source.weights[n]) for n, t in after.source.weights.items())
    assert (after.scores["low"].mean or 0) > (before.scores["low"].mean or 0) + 0.2
    assert after.evaluation()["cost"]["trained_parameters"] == 16 * 5 + 5
    assert after.evaluation()["cost"]["steps"] == 300


def test_the_head_is_trained_before_all_weights() -> None:
    phases: list[str] = []
    done = small_finetune(progress=lambda event: phases.append(event.phase))
    assert list(dict.fromkeys(phases)) == [
        "read test images",
        "check images",
        "read images",
        "features (training)",
        "features (validation)",
        "train the head",
        "train all",
        "evaluate low",
    ]
    assert phases.count("train the head") == 20
    assert phases.count("train all") == 40
    assert len(done.trace.loss) == 60
    assert done.trace.chosen_step > 20
    assert done.trace.validation[0][0] == 1
    assert done.trace.validation[-1][0] == 60


def test_training_without_improvement_stops_early_with_the_best_weights() -> None:
    done = small_finetune(training={"head_steps": 0, "steps": 200, "lr": 3.0, "patience": 2})
    assert len(done.trace.loss) < 200
    losses = [loss for _, loss in done.trace.validation]
    best = losses.index(min(losses))
    assert done.trace.chosen_step == done.trace.validation[best][0]
    assert len(losses) == best + 3
    longer = small_finetune(training={"head_steps": 0, "steps": 200, "lr": 3.0, "patience": None})
    assert len(longer.trace.loss) == 200


def test_images_read_on_demand_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_finetune(output=tmp_path / "kept", data={"augment": "shift"})
    monkeypatch.setattr(labelled, "MAX_KEPT_BYTES", 0)
    small_finetune(output=tmp_path / "read", data={"augment": "shift"})
    assert weight_bytes(tmp_path / "kept") == weight_bytes(tmp_path / "read")
    small_finetune(output=tmp_path / "plain")
    assert weight_bytes(tmp_path / "plain") != weight_bytes(tmp_path / "read")


def test_a_batch_computed_in_parts_only_changes_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = small_finetune()
    forward = classifier.Classifier.forward

    def small(self: classifier.Classifier, pixels: torch.Tensor) -> torch.Tensor:
        if self.training and len(pixels) > 20:
            raise RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes.")
        return forward(self, pixels)

    monkeypatch.setattr(classifier.Classifier, "forward", small)
    parts = small_finetune()
    assert parts.trace.images_at_once == 16
    assert parts.trace.loss == pytest.approx(whole.trace.loss, rel=1e-3)
    assert parts.notes == (
        "memory did not suffice for a whole batch: each batch was computed in parts of 16 images",
    )


def test_a_loss_that_is_not_finite_reports_the_rate_to_change() -> None:
    with pytest.raises(DivergedError) as error:
        small_finetune(training={"lr": 1e30})
    assert "Try a third of the learning rate (training.lr=...)." in str(error.value)
    assert str(error.value).startswith("train all: the loss became ")


def test_bf16_and_checkpointing_train_as_well() -> None:
    plain, checked = (small_finetune(VIT, hardware={"checkpointing": on}) for on in (False, True))
    assert checked.trace.loss == pytest.approx(plain.trace.loss, rel=1e-4)
    half = small_finetune(VIT, hardware={"precision": "bf16"})
    assert half.trace.loss == pytest.approx(plain.trace.loss, rel=0.2)
    assert {t.dtype for t in half.source.weights.values()} == {torch.float32}
