"""Small sources that share a pretrained initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods import METHODS, Problem, Solution
from fsmerge_cli.methods.task_vectors.vectors import TaskVectorMethod
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from tests.support.sources import mlp_source, random_images

NAMES = sorted(name for name, method in METHODS.items() if method.uses_base)


def parent(norm: str = "none", widths: Sequence[int] = (6, 5, 5)) -> Source:
    return mlp_source("base", widths, 0, norm=norm, input_size=(1, 2, 2))


def moved(base: Source, name: str, vector: Mapping[str, Tensor]) -> Source:
    """The base with a task vector, and with a head of its own."""
    head = mlp_source(name, base.arch.widths, 1, input_size=base.arch.input_size).head
    weights = {n: t + vector.get(n, torch.zeros(())).to(t.dtype) for n, t in base.weights.items()}
    return replace(base, name=name, weights=weights, head=head)


def random_vector(base: Source, seed: int, scale: float = 0.1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        n: scale * torch.randn(t.shape, generator=random)
        for n, t in base.weights.items()
        if t.is_floating_point() and "running" not in n
    }


def group(k: int = 3, norm: str = "none", base: Source | None = None, images: int = 3) -> Problem:
    """A problem of `k` sources with random task vectors, and `images` random images per task."""
    base = base or parent(norm)
    return problem([moved(base, f"t{i}", random_vector(base, i)) for i in range(k)], base, images)


def problem(sources: list[Source], base: Source, images: int = 3) -> Problem:
    found: Images = random_images(len(sources), images, base.arch.input_size)
    return Problem(compile_plan(sources), sources, found, base=base)


QUICK: dict[str, dict[str, object]] = {
    "ada_merging": {"steps": 3},
    "concrete": {"steps": 2, "mask_steps": 2},
    "expert_merging": {"steps": 3},
}
"""Options with which a method that trains takes no time."""


def fitted(given: Problem, name: str, **options: object) -> Solution:
    method = METHODS[name](name=name, **{**QUICK.get(name, {}), **options})  # type: ignore[arg-type]
    assert isinstance(method, TaskVectorMethod)
    return method.fit(given)


def task_vectors(given: Problem) -> list[dict[str, Tensor]]:
    assert given.base is not None
    base = given.base.weights
    names = [n for n in base if base[n].is_floating_point() and "running" not in n]
    return [{n: s.weights[n].double() - base[n].double() for n in names} for s in given.sources]


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=1e-5, atol=1e-6, msg=name)
