"""Task vectors t_i = W_i - W_0 (Ilharco et al., arXiv 2212.04089), one tensor at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.least_squares import mean
from fsmerge_cli.alignment.matching import require_one_width
from fsmerge_cli.architectures.ports import Mapped, Role, Unit
from fsmerge_cli.checkpoints.preprocessing import refolded, unfolded
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, FiniteFloat
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.base import Method, Weighted
from fsmerge_cli.models.source import Pixels, Source
from fsmerge_cli.training.problem import Problem, Solution

Density = Annotated[float, Field(strict=True, gt=0, le=1)]


@plain_dataclass(frozen=True)
class TaskVectors:
    """The task vectors of a problem. Only one tensor of all sources is in memory at a time, in fp64.

    Running statistics and counters have no task vector: they are averaged, or copied from source 1. problem: with
    weights as they were trained, for normalised pixels. pixels: their mean and std (None: pixels in 0..1). given:
    the problem whose networks run on its images (None: `problem`).
    """

    problem: Problem
    pixels: Pixels | None = None
    given: Problem | None = None

    @property
    def running(self) -> Problem:
        """The problem whose networks run on its images."""
        return self.given or self.problem

    def running_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as they were trained -> those of a network that runs on the images; gradients pass."""
        plan = self.problem.plan
        return dict(weights) if self.pixels is None else refolded(plan.family, plan.arch, weights, self.pixels)

    def __post_init__(self) -> None:
        """Raise ConfigError for a problem without the pretrained weights."""
        if self.problem.base is None:
            raise ConfigError("this method needs the weights that all sources were fine-tuned from: base=...")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The tensors that have a task vector."""
        roles = self.problem.plan.roles
        return tuple(name for name, role in roles.items() if _is_trained(role))

    def is_matrix(self, name: str) -> bool:
        """Whether a tensor maps one space to another (not: tables, biases, norms, and layers that read pixels)."""
        role = self.problem.plan.roles[name]
        return isinstance(role, Mapped) and role.read is not None

    def base(self, name: str) -> Tensor:
        """W_0 of one tensor."""
        source = self.problem.base
        if source is None:
            raise ConfigError("there are no pretrained weights.")
        return source.weights[name].to(self.problem.device, torch.float64)

    def of(self, name: str) -> Tensor:
        """The task vectors of one tensor, [k, *shape]."""
        base = self.base(name)
        return torch.stack([s.weights[name].to(base) - base for s in self.problem.sources])

    def of_source(self, source: int) -> Iterator[tuple[str, Tensor]]:
        """The task vector of one source, tensor by tensor."""
        for name in self.names:
            base = self.base(name)
            yield name, self.problem.sources[source].weights[name].to(base) - base

    def solution(self, merge: Callable[[str, Tensor], Tensor], **facts: float) -> Solution:
        """W' = W_0 + merge(name, [k, *shape]) for every tensor; facts: to report."""
        problem, sources = self.problem, self.problem.weights("cpu")
        even = (1.0,) * len(sources)
        merged: dict[str, Tensor] = {}
        for name in problem.plan.roles:
            if name in self.names:
                base = self.base(name)
                merged[name] = (base + merge(name, self.of(name))).float()
                problem.progress(Event("merge", len(merged), len(problem.plan.roles)))
            else:
                merged[name] = mean(sources, name, even).to(problem.device)
        return Solution(merged, self.projectors(), facts=facts)

    def projectors(self) -> tuple[Tensor, ...]:
        """The identity for every source: all of them have the basis of the pretrained features."""
        return (torch.eye(self.problem.plan.arch.features, device=self.problem.device),) * len(
            self.problem.sources
        )


@dataclass(frozen=True, config=FORBID)
class TaskVectorMethod(Method, ABC):
    """Abstract: a method that merges task vectors.

    Methods get the weights as they were trained: folding mean and std scales the first layer and ties its bias to
    its weights, so that entries, or weight and bias, cannot be changed one by one. The result is folded.
    """

    uses_base: ClassVar[bool] = True
    one_width: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        """Raise ConfigError where widths or numbers of heads differ."""
        require_one_width(problem.plan, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Merge the task vectors and add the result to the pretrained weights."""
        self.check(problem)
        pixels = _common_pixels(problem)
        if pixels is None:
            return self.merge(TaskVectors(problem))
        solution = self.merge(TaskVectors(_as_trained(problem, pixels), pixels, problem))
        plan, masked = problem.plan, solution.masked
        return replace(
            solution,
            weights=refolded(plan.family, plan.arch, solution.weights, pixels),
            masked=None if masked is None else replace(masked, pixels=pixels),
        )

    @abstractmethod
    def merge(self, vectors: TaskVectors) -> Solution:
        """The merged model."""


@dataclass(frozen=True, config=FORBID)
class Scaled(Weighted, TaskVectorMethod, ABC):
    """Abstract: the options of methods that scale the merged task vector.

    coefficient: factor of the merged task vector (lambda of the papers).
    """

    coefficient: FiniteFloat = 1.0

    def shares(self, vectors: TaskVectors) -> Tensor:
        """The task weights, of mean 1, [k]."""
        weights = self.weights_of_tasks(len(vectors.problem.sources))
        return torch.tensor(weights, dtype=torch.float64, device=vectors.problem.device)


def _common_pixels(problem: Problem) -> Pixels | None:
    """The mean and std that base and sources share; None where there are none, or several."""
    found = {source.folded for source in (problem.base, *problem.sources) if source is not None}
    return found.pop() if len(found) == 1 else None


def _as_trained(problem: Problem, pixels: Pixels) -> Problem:
    """The problem with weights for normalised pixels."""

    def trained(source: Source) -> Source:
        return replace(source, weights=unfolded(source.family, source.arch, source.weights, pixels), folded=None)

    base = None if problem.base is None else trained(problem.base)
    return replace(problem, sources=[*map(trained, problem.sources)], base=base)


def _is_trained(role: Role) -> bool:
    return isinstance(role, Mapped) or (isinstance(role, Unit) and role.trainable)


def weighted_sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """sum_i w_i t_i of weights [k] and vectors [k, *shape]."""
    summed: Tensor = torch.tensordot(weights, vectors, 1)
    return summed


def elected(vectors: Tensor, weights: Tensor) -> Tensor:
    """Sign election and disjoint mean (TIES, arXiv 2306.01708, section 4): [k, *shape] -> [*shape].

    The sign of an entry is that of its weighted sum over the sources; the result is the weighted mean over the
    sources with this sign, zero where there are none. weights: [k], positive.
    """
    w = weights.reshape(-1, *[1] * (vectors.ndim - 1))
    agrees = (vectors.sign() == (w * vectors).sum(0).sign()) & (vectors != 0)
    return (w * vectors * agrees).sum(0) / (w * agrees).sum(0).clamp(min=torch.finfo(torch.float64).tiny)


def rows(tensor: Tensor) -> Tensor:
    """A tensor as a matrix [n, m]: one row per output unit; a vector is one row."""
    return tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def ranks(magnitudes: Tensor) -> Tensor:
    """Rank of every entry in its row of a matrix, 0 for the smallest; equal ones in their order."""
    return magnitudes.argsort(dim=1, stable=True).argsort(dim=1)


def kth_largest(magnitudes: Callable[[], Iterator[Tensor]], k: int) -> float:
    """The k-th largest of all entries of the tensors (not negative, in fp32), which are never held together.

    The bits of such numbers are in the order of the numbers, so two counts suffice: of their upper 16 bits, and of
    the lower 16 bits of those with the upper ones of the result.
    """
    upper = _count(magnitudes, lambda bits: bits >> 16)
    above, left = _from_the_top(upper, k)
    lower = _count(magnitudes, lambda bits: bits[bits >> 16 == above] & 0xFFFF)
    below, _ = _from_the_top(lower, left)
    return float(torch.tensor((above << 16) | below, dtype=torch.int32).view(torch.float32))


def _count(magnitudes: Callable[[], Iterator[Tensor]], part: Callable[[Tensor], Tensor]) -> Tensor:
    counts = torch.zeros(1 << 16, dtype=torch.int64)
    for own in magnitudes():
        counts += torch.bincount(part(own.float().flatten().view(torch.int32)), minlength=1 << 16).cpu()
    return counts


def _from_the_top(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin in which the k-th entry from the top lies, and its place in this bin (from the top, from 1)."""
    sums = counts.flip(0).cumsum(0)
    place = int((sums < k).sum())
    return len(counts) - 1 - place, k - (int(sums[place - 1]) if place else 0)


def thresholds(vectors: TaskVectors, density: float) -> list[float]:
    """The magnitude above which the largest `density` of all entries of each source's task vector lie."""
    size = sum(vectors.base(name).numel() for name in vectors.names)
    k = max(1, round(density * size))

    def of(source: int) -> Callable[[], Iterator[Tensor]]:
        return lambda: (vector.abs() for _, vector in vectors.of_source(source))

    return [kth_largest(of(i), k) for i in range(len(vectors.problem.sources))]


def trimmed(vectors: Tensor, limits: Sequence[float]) -> Tensor:
    """The vectors [k, *shape] with the entries below the limit of their source set to zero."""
    least = torch.tensor(limits, device=vectors.device).reshape(-1, *[1] * (vectors.ndim - 1))
    return torch.where(vectors.abs().float() >= least, vectors, 0.0)
