"""The options and the result of `fsmerge curve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from fsmerge_cli.common.options import FORBID, Flag
from fsmerge_cli.common.separation import Input
from fsmerge_cli.evaluation.interpolation import CurvePoint

Alignment = Literal["weights", "activations", "none"]


@checked(frozen=True, config=FORBID)
class CurveOptions:
    """The options of a curve.

    align: of source 2 with source 1. points: of each line, both ends included. repair: reset the statistics of the
    network at each point to those between the sources' (REPAIR, arXiv 2211.08403).
    """

    align: Alignment = "weights"
    points: Annotated[int, Field(strict=True, ge=2, le=1001)] = 11
    repair: Flag = False


@dataclass(frozen=True)
class Line:
    """The points of one line, in order, and the barrier of every metric on it."""

    alignment: str
    points: tuple[CurvePoint, ...]
    barrier: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """The lines between two sources: without alignment, and after it.

    sources: name and SHA-256 of the weights. images: how many were evaluated. kind: of the inputs. inputs: the
    paths that were read.
    """

    lines: tuple[Line, ...]
    sources: tuple[tuple[str, str], ...]
    images: int
    notes: tuple[str, ...]
    options: Mapping[str, Any]
    kind: Literal["image", "text"]
    inputs: Sequence[Input] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row per alignment and point; what was not measured is None."""
        return [{"alignment": line.alignment, **_flat(point)} for line in self.lines for point in line.points]

    def content(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return {
            "sources": [{"name": name, "sha256": sha256} for name, sha256 in self.sources],
            "images": self.images,
            **self.options,
            "lines": [
                {
                    "alignment": line.alignment,
                    "barrier": dict(line.barrier),
                    "points": [_flat(point) for point in line.points],
                }
                for line in self.lines
            ],
            "notes": list(self.notes),
        }


def _flat(point: CurvePoint) -> dict[str, float | None]:
    return {
        "alpha": point.alpha,
        "loss": point.loss,
        "accuracy": None if point.error is None else 1 - point.error,
        "agreement_1": None if point.disagreement[0] is None else 1 - point.disagreement[0],
        "agreement_2": None if point.disagreement[1] is None else 1 - point.disagreement[1],
        "feature_error_1": point.feature_error[0],
        "feature_error_2": point.feature_error[1],
    }
