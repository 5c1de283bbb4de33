"""Regularisation of a supervised training: what is mixed, dropped and averaged, and that it can be resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.data.images.augment import augmentation, new_views
from fsmerge_cli.training import classifier
from fsmerge_cli.training.finetuning_options import TrainingOptions
from fsmerge_cli.training.regularization import (
    MovingAverage,
    drop_parts,
    keep_all_patches,
    mixed_with_labels,
    randaugmented,
)
from fsmerge_cli.training.state import Schedule, TrainingState
from tests.support.finetuning import VIT, StopError, small_finetune, stop_after, weight_bytes

ALL: dict[str, Any] = {
    "head_steps": 5,
    "steps": 20,
    "anneal": "cosine",
    "warmup": 0.1,
    "optimizer": "muon",
    "mixup": 0.2,
    "cutmix": 1.0,
    "randaugment": 5,
    "stochastic_depth": 0.3,
    "patch_drop": 0.5,
    "plain_share": 0.3,
    "ema": 0.9,
    "patience": None,
}


def vit(depth: int = 3) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": depth, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)


def test_randaugment_depends_on_seed_and_step_only() -> None:
    images = torch.rand(6, 3, 16, 16)
    torch.manual_seed(1)
    first = randaugmented(images, 9, 3, 7)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # the global generator is where it was
    assert torch.equal(first, randaugmented(images, 9, 3, 7))
    assert not torch.equal(first, randaugmented(images, 9, 3, 8))
    assert first.min() >= 0
    assert first.max() <= 1


def test_randaugment_samples_each_image() -> None:
    views = randaugmented(torch.rand(1, 3, 16, 16).expand(12, -1, -1, -1), 15, 0, 0)
    assert len({view.numpy().tobytes() for view in views}) > 6


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_target_states_what_is_in_the_image(kind: str) -> None:
    classes = torch.arange(8) % 2
    images = classes[:, None, None, None].float().expand(-1, 3, 16, 16).clone()
    options = TrainingOptions(**{kind: 1.0})
    seen = set()
    for step in range(12):
        pixels, targets = mixed_with_labels(images, classes, 2, options, 0, step)
        assert targets.shape == (8, 2)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        torch.testing.assert_close(pixels.mean((1, 2, 3)), targets[:, 1], rtol=0, atol=1e-5)
        seen |= {round(float(t), 3) for t in targets[:, 1]}
    assert len(seen) > 5


def test_both_kinds_take_turns_and_neither_changes_nothing() -> None:
    classes = torch.arange(8) % 2
    images = classes[:, None, None, None].float().expand(-1, 3, 16, 16).clone()
    both = TrainingOptions(mixup=1.0, cutmix=1.0)
    parts = [mixed_with_labels(images, classes, 2, both, 0, step)[0].unique() for step in range(20)]
    assert {bool((values % 1 > 0).any()) for values in parts} == {True, False}  # weighted means, or rectangles
    assert mixed_with_labels(images, classes, 2, TrainingOptions(), 0, 0)[0] is images


def test_dropped_parts_only_change_training() -> None:
    plain, regular = vit().eval(), vit()
    drop_parts(regular, TrainingOptions(stochastic_depth=0.4, patch_drop=0.5))
    rates = [block.drop_path1.drop_prob for block in regular.blocks]
    assert rates == [0.0, 0.2, 0.4]
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(regular.eval()(images), plain(images))
    assert regular.state_dict().keys() == plain.state_dict().keys()
    sizes: list[int] = []
    regular.blocks[0].register_forward_hook(lambda module, given, output: sizes.append(output.shape[1]))
    regular.train()(images)
    keep_all_patches(regular)
    regular(images)
    assert sizes == [3, 5]  # two of four patches and the class token; all


def test_one_block_cannot_be_skipped() -> None:
    with pytest.raises(ConfigError) as error:
        drop_parts(vit(1), TrainingOptions(stochastic_depth=0.1))
    assert str(error.value) == (
        "training.stochastic_depth: the first block is never skipped, and this model has only one. Leave it out."
    )
    drop_parts(one := vit(1), TrainingOptions(patch_drop=0.5))
    assert one.blocks[0].drop_path1.drop_prob == 0.0


def test_only_vits_have_parts_to_drop() -> None:
    with pytest.raises(ConfigError) as error:
        small_finetune(training={"head_steps": 0, "steps": 2, "stochastic_depth": 0.1, "patch_drop": 0.2})
    assert str(error.value) == (
        "training.stochastic_depth and training.patch_drop: only vision transformers have such parts. "
        "Leave it out."
    )


def test_the_average_is_the_weighted_sum_of_all_steps() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    average = MovingAverage(module, 0.7)
    expected = module.weight.detach().clone()
    for step in range(9):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 3))
        average.update(step)
        done = max(0, step - 1)  # timm: the decay grows to its value over the first steps
        decay = min(0.7, 1 - (1 + done) ** (-2 / 3)) if done else 0.0
        expected = decay * expected + (1 - decay) * module.weight.detach()
    own = module.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(module.weight, expected)
    assert torch.equal(module.weight, own)
    average.load()
    torch.testing.assert_close(module.weight, expected)


def test_a_cosine_schedule_with_warmup() -> None:
    network = nn.Linear(2, 2)
    state = TrainingState(network, Schedule(100, 4, 1.0, 0.0, 1.0, None, "cosine", 0.1))  # type: ignore[arg-type]
    rates = []
    for _ in range(100):
        network(torch.ones(1, 2)).sum().backward()
        rates.append(state.rate)
        state.advance()
        state.losses.append(0.0)
    assert rates.index(max(rates)) == 9
    assert max(rates) == pytest.approx(1.0)
    expected = [(1 + math.cos(math.pi * (step - 9) / 90)) / 2 for step in range(9, 100)]
    assert rates[9:] == pytest.approx(expected, abs=1e-4)


def test_crop_flip_keeps_shape_and_range() -> None:
    images = torch.rand(4, 3, 16, 24)
    views, _ = new_views(images, "crop_flip", 0.0, 0, 0)
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1
    torch.manual_seed(0)
    flip = augmentation("crop_flip", (8, 8))
    ramp = torch.arange(8.0).expand(1, 3, 8, 8) / 8
    slopes = {bool(flip(ramp)[0, 0, 4, 5] > flip(ramp)[0, 0, 4, 3]) for _ in range(12)}
    assert slopes == {True, False}


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.1), (100, 0.01), (20, 0.05), (5, 0.0), (1, 0.3)])
def test_a_warmup_of_one_step_is_none(steps: int, warmup: float) -> None:
    network = nn.Linear(2, 2)
    state = TrainingState(network, Schedule(steps, 4, 1.0, 0.0, 1.0, None, "cosine", warmup))  # type: ignore[arg-type]
    assert 0 < state.rate <= 1


def test_the_options_reach_the_training_until_its_plain_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed targets, RandAugment, skipped branches and half of the patches; none of them in the last share."""
    seen: list[tuple[torch.Size, bool, int]] = []
    augmented: list[int] = []
    gradients, augment = classifier._gradients, classifier.randaugmented

    def watched(forward: Any, inputs: Any, targets: Any, state: Any, setup: Any) -> float:
        blocks = state.student.backbone.blocks
        patches: list[int] = []
        with blocks[0].register_forward_hook(lambda module, given, output: patches.append(output.shape[1])):
            loss = gradients(forward, inputs, targets, state, setup)
        seen.append((targets.shape, blocks[-1].drop_path1.drop_prob == 0.3, patches[0]))
        return loss

    def counted(pixels: Any, magnitude: int, seed: int, step: int) -> Any:
        augmented.append(magnitude)
        return augment(pixels, magnitude, seed, step)

    monkeypatch.setattr(classifier, "_gradients", watched)
    monkeypatch.setattr(classifier, "randaugmented", counted)
    training = {**ALL, "head_steps": 0, "steps": 10, "patience": None, "batch_size": 8}
    small_finetune(arch=VIT, training=training, data={"images_per_task": 40})
    assert seen == [(torch.Size([8, 5]), True, 3)] * 7 + [(torch.Size([8]), True, 5)] * 3
    assert augmented == [5] * 7


@pytest.mark.full
def test_patience_counts_from_the_plain_part_on() -> None:
    training = {"head_steps": 0, "steps": 40, "lr": 1e-9, "patience": 1, "patch_drop": 0.5}
    early = small_finetune(arch=VIT, training=training, data={"images_per_task": 100})
    assert len(early.trace.loss) < 20
    late = small_finetune(arch=VIT, training={**training, "plain_share": 0.5}, data={"images_per_task": 100})
    assert 20 < len(late.trace.loss) < 40


@pytest.mark.full
def test_an_averaged_run_that_ends_early_is_resumed_to_the_byte(tmp_path: Path) -> None:
    training = {"head_steps": 0, "steps": 40, "lr": 0.3, "patience": 2, "ema": 0.5}
    options: dict[str, Any] = {"training": training, "data": {"images_per_task": 100}}
    whole = small_finetune(output=tmp_path / "whole", **options)
    ended = len(whole.trace.loss)
    assert whole.trace.chosen_step < ended < 40
    for count in (ended - 2, ended):
        with pytest.raises(StopError):
            small_finetune(output=tmp_path / f"{count}", checkpoint_every=1, progress=stop_after(count), **options)
        small_finetune(output=tmp_path / f"{count}", resume=True, **options)
        assert weight_bytes(tmp_path / "whole") == weight_bytes(tmp_path / f"{count}")


@pytest.mark.full
@pytest.mark.parametrize("count", [3, 12, 22])
def test_a_regularised_run_is_resumed_to_the_byte(count: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"arch": VIT, "training": ALL, "data": {"images_per_task": 100}}
    small_finetune(output=tmp_path / "whole", **options)
    with pytest.raises(StopError):
        small_finetune(output=tmp_path / "parts", checkpoint_every=2, progress=stop_after(count), **options)
    small_finetune(output=tmp_path / "parts", resume=True, **options)
    assert weight_bytes(tmp_path / "whole") == weight_bytes(tmp_path / "parts")


def test_a_normalisation_of_random_weights_is_folded_at_the_end() -> None:
    still = {"head_steps": 0, "steps": 1, "lr": 1e-12, "weight_decay": 0.0}
    plain = small_finetune(training=still).source
    normalised = small_finetune(training=still, model={"mean": [0.3], "std": [0.2]}).source
    expected = fold_normalisation(plain.family, plain.arch, plain.weights, (0.3,), (0.2,), "x")
    assert expected.keys() == normalised.weights.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(normalised.weights[name], tensor, rtol=0, atol=1e-6)


def test_the_figures_are_of_the_folded_weights() -> None:
    done = small_finetune(training={"head_steps": 20, "steps": 60}, model={"mean": [0.5], "std": [0.3]})
    assert done.scores["low"].tasks["low"].top1 > 0.7


@pytest.mark.full
def test_the_kept_weights_are_averaged_without_a_validation_share() -> None:
    training = {"head_steps": 0, "steps": 8, "lr": 0.01}
    plain = small_finetune(training=training, data={"validation": 0.0})
    averaged = small_finetune(training={**training, "ema": 0.9}, data={"validation": 0.0})
    assert plain.trace.loss == averaged.trace.loss  # the same training
    name = next(iter(plain.source.weights))
    assert not torch.equal(plain.source.weights[name], averaged.source.weights[name])
