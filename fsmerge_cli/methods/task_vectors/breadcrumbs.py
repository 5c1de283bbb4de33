"""Model Breadcrumbs (Davari & Belilovsky, arXiv 2312.06795): task vectors without extreme entries."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, FiniteFloat
from fsmerge_cli.methods.task_vectors.vectors import Scaled, TaskVectors, ranks, weighted_sum
from fsmerge_cli.training.problem import Problem, Solution

Quantile = Annotated[float, Field(strict=True, ge=0, le=1)]


@dataclass(frozen=True, config=FORBID)
class Breadcrumbs(Scaled):
    """W' = W_0 + c sum_i w_i m_i t_i, with a mask m_i of the entries between two quantiles of the magnitude.

    The quantiles are taken in each tensor of each source. smallest: share of the entries of smallest magnitude,
    which are left out. largest: share above which entries are outliers, and left out too.
    """

    name: Literal["breadcrumbs"] = "breadcrumbs"
    coefficient: FiniteFloat = 0.3
    smallest: Quantile = 0.85
    largest: Quantile = 0.993

    def check(self, problem: Problem) -> None:
        """Raise ConfigError where widths differ, or no entry is left."""
        super().check(problem)
        if self.smallest >= self.largest:
            raise ConfigError(
                f"method.smallest={self.smallest} leaves no entry below method.largest={self.largest}, and the "
                "result would be models.base. Pass a smaller method.smallest."
            )

    def merge(self, vectors: TaskVectors) -> Solution:
        """Mask, then add."""
        shares = self.shares(vectors)
        return vectors.solution(lambda name, own: self.coefficient * weighted_sum(shares, self.masked(own)))

    def masked(self, vectors: Tensor) -> Tensor:
        """The vectors [k, *shape] without the entries outside the quantiles."""
        flat = vectors.flatten(1)
        place, count = ranks(flat.abs()), flat.shape[1]
        kept = (place >= int(self.smallest * count)) & (place < int(self.largest * count))
        return (flat * kept).reshape(vectors.shape)
