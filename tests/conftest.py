"""Shared fixtures: small random sources of every kind, and a cache that lasts for one test session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.data.queries import Images
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.plan import compile_plan
from fsmerge_cli.sources import Head, Source
from fsmerge_cli.specs import SPECS
from fsmerge_cli.specs.mlp import MLPArch

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Embedded sources: where the caller says (the Makefile), else trained once per session."""
    patch = pytest.MonkeyPatch()
    # Tiny models: more threads only wait for each other. Here, and in the processes that tests start.
    torch.set_num_threads(1)
    patch.setenv("OMP_NUM_THREADS", "1")
    if "FSMERGE_CACHE" not in os.environ:
        patch.setenv("FSMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell's background job ignores Ctrl-C, and so do its children, unless they are told otherwise."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
    """A random MLP; BatchNorm statistics and affine are random too, so that nothing cancels by accident."""
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


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """Problem from a list of sources (default: two 8-wide MLPs) and some random images."""

    def make(sources: list[Source] | None = None, per_task: int = 12, held: int = 0, **options: object) -> Problem:
        sources = sources or [mlp_source("a", [8, 8], 1), mlp_source("b", [8, 8], 2)]
        images = random_images(len(sources), per_task, sources[0].arch.input_size, held)
        width = options.pop("width", None)
        return Problem(compile_plan(sources, width), sources, images, **options)  # type: ignore[arg-type]

    return make


PLAIN: dict[str, Any] = {
    **{"targets": "own", "logits": 0.0, "apart": 0.0, "augment": "none", "mix": 0.0, "lr": 1e-3, "start": "first"},
    "optimizer": "adamw",
}
"""Features alone, of the images as they are."""


def folding(**options: Any) -> FSMerge:
    """FS-Merge on the features alone, with the maps to the end."""
    return FSMerge(**{**PLAIN, "release": 0.0, **options})


def distilling(**options: Any) -> Distillation:
    """Distillation on the features alone."""
    return Distillation(**{**PLAIN, **options})
