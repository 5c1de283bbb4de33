"""Small random sources and images, and the methods in their simplest form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.architectures.mlp import MLPArch
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import silent
from fsmerge_cli.data.draw import Images, Targets
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import TeacherTargets, capture


def mlp_source(
    name: str,
    widths: Sequence[int],
    seed: int,
    *,
    norm: str = "none",
    activation: str = "relu",
    bias: bool = True,
    classes: int | None = 3,
    input_size: tuple[int, int, int] = (1, 4, 4),
) -> Source:
    """A random MLP; BatchNorm statistics and affine are random too, so that errors cannot cancel by accident."""
    family = SPECS["mlp"]
    arch = MLPArch(input_size, tuple(widths), activation, norm, bias)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = {n: t.clone() for n, t in family.build(arch).state_dict().items()}
        for key, value in weights.items():
            if key.startswith("norm") and value.is_floating_point():
                weights[key] = torch.rand_like(value) + 0.5
        head = None
        if classes:
            labels = tuple(f"{name}-{c}" for c in range(classes))
            head = Head(torch.randn(classes, arch.features), torch.randn(classes), labels)
    return Source(name, family, arch, weights, head, origin="random", sha256="0" * 64)


def random_images(
    tasks: int, per_task: int, size: tuple[int, int, int] = (1, 4, 4), held: int = 0, seed: int = 0
) -> Images:
    """Random pixels, `held` images per task in the validation share."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.rand(tasks * per_task, *size, generator=random)
    mask = (torch.arange(per_task) < held).repeat(tasks)
    return Images(
        pixels,
        torch.arange(tasks).repeat_interleave(per_task),
        (~mask).nonzero().flatten(),
        mask.nonzero().flatten(),
    )


def with_heads(problem: Problem) -> Problem:
    """The problem with a random head of three classes on every source."""
    random = torch.Generator().manual_seed(0)
    sources = [
        replace(s, head=Head(torch.randn(3, s.arch.features, generator=random), None, ("a", "b", "c")))
        for s in problem.sources
    ]
    return replace(problem, sources=sources)


def capture_in_memory(problem: Problem, targets: Targets = "all") -> tuple[TeacherTargets, ...]:
    """The targets of all sources, on the CPU."""
    hardware = Hardware(features="memory")
    return capture(problem.sources, problem.images, targets, hardware, torch.device("cpu"), silent)


PLAIN: dict[str, Any] = {
    **{
        "targets": "own",
        "logit_weight": 0.0,
        "outlier_exposure": 0.0,
        "augment": "none",
        "mixup": 0.0,
        "lr": 1e-3,
        "start": "first",
    },
    "optimizer": "adamw",
}
"""Only the feature loss, without augmentation."""


def folding(**options: Any) -> FSMerge:
    """FS-Merge with only the feature loss and without fine-tuning."""
    return FSMerge(**{**PLAIN, "finetune_share": 0.0, **options})


def distilling(**options: Any) -> Distillation:
    """Distillation with only the feature loss."""
    return Distillation(**{**PLAIN, **options})
