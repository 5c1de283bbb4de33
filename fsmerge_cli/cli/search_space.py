"""What a search over merges varies: the keys that are given an interval, or the coefficients of the method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from fsmerge_cli.common.errors import ConfigError

WEIGHTS, COEFFICIENT = "task_weights", "coefficient"
RATIO = 16.0
"""Largest and smallest (1 / RATIO) task weight in a search, relative to the task of source 1."""


@dataclass(frozen=True)
class SearchSpace:
    """A box [0, 1]^n of points. fixed: overrides of every job. of: the overrides of a point."""

    size: int
    fixed: tuple[str, ...]
    of: Callable[[Sequence[float]], tuple[str, ...]]


@dataclass(frozen=True)
class _Range:
    key: str
    low: float
    high: float
    log: bool
    whole: bool

    def at(self, place: float) -> str:
        """The override at a place in 0..1."""
        if self.log:
            value = math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + place * (self.high - self.low)
        return f"{self.key}={round(value) if self.whole else float(f'{value:.6g}')}"


def search_space(sweep: str, config: DictConfig, arguments: Sequence[str]) -> SearchSpace:
    """The search space of a command.

    Keys with interval(a,b); where there are none, the coefficients c_i in 0..1 of the task vectors (a method with
    `coefficient` and `task_weights`), or the task weights relative to source 1. Raises ConfigError where there is
    nothing to search over, or a key has several values that are no interval.
    """
    ranges, fixed = [], []
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif override.is_interval_sweep():
            own: Any = override.value()
            whole = isinstance(own.start, int) and isinstance(own.end, int)
            key = override.get_key_element()
            if "log" in own.tags and min(own.start, own.end) <= 0:
                raise ConfigError(
                    f"{override.input_line}: a range with tag(log,...) has positive ends. Pass "
                    f"{key}=interval({own.start},{own.end}), or a larger start."
                )
            ranges.append(_Range(key, float(own.start), float(own.end), "log" in own.tags, whole))
        else:
            raise ConfigError(
                f"{override.input_line}: sweep={sweep} searches between two numbers. Pass "
                f"{override.get_key_element()}=interval(a,b), or one value."
            )
    if ranges:
        return SearchSpace(len(ranges), tuple(fixed), lambda point: tuple(r.at(x) for r, x in zip(ranges, point)))
    k, method = len(config.models.sources), config.method
    if WEIGHTS in method and COEFFICIENT in method:
        return SearchSpace(k, tuple(fixed), coefficients)
    if WEIGHTS in method:
        return SearchSpace(k - 1, tuple(fixed), weights)
    raise ConfigError(
        f"sweep={sweep}: method={method.name} has no task weights, so there is nothing to search over. Give a "
        "range: 'method.KEY=interval(0.1,1)', or use method=task_arithmetic."
    )


def coefficients(point: Sequence[float]) -> tuple[str, ...]:
    """The overrides for coefficients c_i of the task vectors: c = `coefficient` times weights of mean 1.

    >>> coefficients([0.5, 0.25])
    ('method.coefficient=0.375', '++method.task_weights.0=0.5', '++method.task_weights.1=0.25')
    """
    own = [max(x, 1e-6) for x in point]
    given = [f"++method.{WEIGHTS}.{i}={round(x, 6)}" for i, x in enumerate(own)]
    return (f"method.{COEFFICIENT}={round(sum(own) / len(own), 6)}", *given)


def weights(point: Sequence[float]) -> tuple[str, ...]:
    """The overrides for task weights relative to source 1, from 1 / RATIO to RATIO.

    >>> weights([0.5, 1.0])
    ('++method.task_weights.0=1.0', '++method.task_weights.1=1.0', '++method.task_weights.2=16.0')
    """
    own = [1.0, *(round(RATIO ** (2 * x - 1), 6) for x in point)]
    return tuple(f"++method.{WEIGHTS}.{i}={x}" for i, x in enumerate(own))
