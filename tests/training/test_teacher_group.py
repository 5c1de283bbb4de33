"""Teachers that run together have the features of teachers that run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.methods import Problem, base
from fsmerge_cli.models.source import Source
from fsmerge_cli.training import teacher_group
from fsmerge_cli.training.objective import Batch
from fsmerge_cli.training.teacher_group import TeacherGroup, equal, operations, rounded
from fsmerge_cli.training.teachers import TeacherTargets, capture, network
from tests.support.sources import distilling, folding, mlp_source
from tests.support.vits import VARIANTS, mark_full, vit_source

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # attention on a CPU, k times

CPU = torch.device("cpu")
BATCH = 4  # divides no number of images here
Make = Callable[..., Problem]


def refuse(images: Tensor) -> Tensor:
    raise AssertionError("run one after the other")


def group_of(sources: Sequence[Source], runs: Sequence[Any] = (), **options: Any) -> TeacherGroup:
    hardware = Hardware(**{"device": "cpu", "eval_batch": BATCH, **options})
    return TeacherGroup(sources, runs or [refuse] * len(sources), hardware, CPU)


def inputs_of(source: Source, sizes: Sequence[int]) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    return [torch.rand(size, *source.arch.input_size, generator=random) for size in sizes]


def sources_of(kind: str, k: int = 3) -> list[Source]:
    return [mlp_source(f"s{seed}", [8, 8], seed) if kind == "mlp" else vit_source(kind, seed) for seed in range(k)]


@pytest.mark.full
@pytest.mark.parametrize("kind", mark_full(["mlp", *VARIANTS]))
def test_teachers_together_equal_teachers_one_after_the_other(kind: str) -> None:
    sources = sources_of(kind)
    own = inputs_of(sources[0], [7, 6, 7])
    for inputs in ([own[0]] * 3, own):
        pending = group_of(sources).start(inputs)
        for i, source in enumerate(sources):
            torch.testing.assert_close(pending.of(i), network(source)(inputs[i]))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["class token", "q/k norm", "RMSNorm", "packed SwiGLU (DINOv2 giant)"])
def test_bf16_teachers_together_are_as_exact_as_one_after_the_other(kind: str) -> None:
    sources = sources_of(kind)
    inputs = inputs_of(sources[0], [7, 7, 7])
    found = torch.stack(group_of(sources, precision="bf16").batched(inputs))
    exact = torch.stack([network(source)(images) for source, images in zip(sources, inputs)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = torch.stack([network(source)(images).float() for source, images in zip(sources, inputs)])
        narrow = torch.stack([rounded(network(source))(images).float() for source, images in zip(sources, inputs)])
    assert torch.equal(narrow, alone)
    assert found.dtype == torch.float32
    # A batched product is rounded before its bias is added.
    assert 0 < (found - exact).norm() < 1.7 * (alone - exact).norm()


@pytest.mark.full
@pytest.mark.parametrize("targets", ["own", "all"])
@pytest.mark.parametrize("method", [folding, distilling])
def test_a_training_with_teachers_together_has_the_losses_of_the_loop(
    make_problem: Make, monkeypatch: pytest.MonkeyPatch, method: Callable[..., Any], targets: str
) -> None:
    problem = make_problem([vit_source("class token", seed) for seed in (1, 2)], per_task=6)
    training = method(steps=4, mixup=0.5, targets=targets, batch_size=8)
    alone = training.fit(problem).trace.loss
    calls: list[TeacherGroup] = []

    def grouped(sources: Any, images: Any, *rest: Any) -> tuple[TeacherTargets, ...]:
        found = capture(sources, images, *rest)
        assert all(own.group is None for own in found)  # a CPU runs them one after the other
        calls.append(TeacherGroup(sources, [refuse] * len(found), Hardware("cpu"), CPU))
        return tuple(replace(own, group=calls[-1]) for own in found)

    monkeypatch.setattr(base, "capture", grouped)
    monkeypatch.setattr(teacher_group, "MAX_PADDING", 2.0)
    assert training.fit(problem).trace.loss == pytest.approx(alone, rel=1e-5)
    assert calls


def test_large_padded_and_unequal_teachers_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = sources_of("mlp")
    runs = [network(source) for source in sources]
    images = inputs_of(sources[0], [8, 8, 8])
    uneven = inputs_of(sources[0], [8, 0, 1])
    other = [*sources[:2], mlp_source("wide", [9, 8], 5)]
    monkeypatch.setattr(TeacherGroup, "batched", refuse)
    assert not equal(other)
    for group, inputs in (
        (group_of(sources, runs), uneven),
        (group_of(other, [*runs[:2], network(other[2])]), images),
    ):
        pending = group.start(inputs)
        assert [len(pending.of(i)) for i in range(3)] == [len(one) for one in inputs]
    monkeypatch.setattr(teacher_group, "SMALL_PASS", 8 * operations(sources[0]) - 1)
    assert torch.equal(group_of(sources, runs).start(images).of(1), runs[1](images[1]))


@dataclass(frozen=True)
class _Branching:
    """A family whose network decides by its input, which `vmap` refuses."""

    family: Any

    def skeleton(self, arch: Any) -> nn.Module:
        inner = self.family.skeleton(arch)

        class Branch(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                weights = {name.removeprefix("inner."): t for name, t in self.named_parameters()}
                if images.mean() > 0:
                    return functional_call(inner, weights, (images,))
                return functional_call(inner, weights, (-images,))

        found = Branch()
        found.inner = inner
        return found


def test_an_architecture_that_cannot_be_batched_runs_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sources_of("mlp")
    family: Any = _Branching(plain[0].family)
    sources = [replace(s, family=family, weights={f"inner.{n}": t for n, t in s.weights.items()}) for s in plain]
    monkeypatch.setattr(teacher_group, "operations", lambda source: 1)
    images = inputs_of(plain[0], [5, 5, 5])
    group = group_of(sources, [network(source) for source in plain])
    for _ in range(2):
        pending = group.start(images)
        for i, source in enumerate(plain):
            assert torch.equal(pending.of(i), network(source)(images[i]))


def test_the_passes_of_a_batch_are_those_of_its_positions(make_problem: Make) -> None:
    problem = make_problem(per_task=6)
    hardware = Hardware("cpu", features="memory")
    targets = capture(problem.sources, problem.images, "own", hardware, CPU, problem.progress)
    group = TeacherGroup(problem.sources, [own.run for own in targets], hardware, CPU)
    rows = torch.arange(12)
    live = [
        Batch.live(problem.images.images, [replace(own, group=g) for own in targets], rows, rows)
        for g in (None, group)
    ]
    with pytest.raises(RuntimeError, match="not started"):
        live[1].targets(0, rows[:6])
    for positions in (rows, rows[::2]):  # the whole batch, and a part that fits into memory
        for batch in live:
            batch.start(positions)
        for i in range(2):
            use = positions[live[0].mask[i][positions]]
            torch.testing.assert_close(live[1].targets(i, use), live[0].targets(i, use))


@pytest.mark.full
def test_operations_are_those_of_the_published_network() -> None:
    from scripts.speed.cases import Shape, random_source

    with torch.device("meta"):
        source = random_source(Shape(depth=12), 0)
    assert operations(source) == pytest.approx(35.1e9, rel=0.01)  # ViT-B/16, per image
