"""Consensus Merging with TALL masks (Wang et al., arXiv 2405.07813): only entries that several tasks use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, FiniteFloat, Flag, NonNegativeFloat, Positive
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, weighted_sum
from fsmerge_cli.training.problem import MaskedNetworks, Problem, Solution


@dataclass(frozen=True, config=FORBID)
class Consensus(Scaled):
    """W' = W_0 + c m s with the sum s = sum_i w_i t_i, and the mask m of the entries that enough tasks use.

    A task uses an entry (its TALL mask) where |w_i t_i| >= a |s - w_i t_i|. mask: a; the paper chooses it from
    0.2 to 0.6. tasks: how many tasks have to use an entry. Entries that one task alone uses are selfish, those
    that none uses catastrophic. masks: also keep W_0, s and the masks m_i of the tasks, one bit per entry, which
    give W_0 + m_i s, a network for every task.
    """

    name: Literal["consensus"] = "consensus"
    coefficient: FiniteFloat = 0.4
    mask: NonNegativeFloat = 0.4
    tasks: Positive = 2
    masks: Flag = False

    def check(self, problem: Problem) -> None:
        """Raise ConfigError where more tasks are asked for than there are, or widths differ."""
        super().check(problem)
        if self.tasks > len(problem.sources):
            raise ConfigError(
                f"method.tasks={self.tasks}, but there are {len(problem.sources)} sources. "
                "Give a number up to that."
            )

    def merge(self, vectors: TaskVectors) -> Solution:
        """Sum, then mask."""
        shares = self.shares(vectors)
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

        def merged(name: str, own: Tensor) -> Tensor:
            parts = own * shares.reshape(-1, *[1] * (own.ndim - 1))
            total = weighted_sum(shares, own)
            used = parts.abs() >= self.mask * (total - parts).abs()
            if self.masks:
                found[name] = vectors.base(name).float(), total.float(), used
            return self.coefficient * total * (used.sum(0) >= self.tasks)

        solution = vectors.solution(merged)
        return replace(solution, masked=self.networks(vectors, found), facts=kept(vectors, found))

    def networks(
        self, vectors: TaskVectors, found: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    ) -> MaskedNetworks | None:
        """W_0, s and the masks of all tasks; None where they are not asked for."""
        if not self.masks:
            return None
        sources = vectors.problem.sources
        return MaskedNetworks(
            {name: own[0] for name, own in found.items()},
            {name: own[1] for name, own in found.items()},
            [{name: own[2][i] for name, own in found.items()} for i in range(len(sources))],
            [{name: t for name, t in source.weights.items() if name not in found} for source in sources],
        )


def kept(vectors: TaskVectors, found: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """The share of the entries in the mask of every task, to report."""
    size = sum(total.numel() for _, total, _ in found.values())
    counts = [
        sum(int(used[i].sum()) for _, _, used in found.values()) for i in range(len(vectors.problem.sources))
    ]
    return {f"mask of {t}": n / size for t, n in zip(vectors.problem.plan.tasks, counts)} if found else {}
