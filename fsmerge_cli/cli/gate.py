"""--strict and --fail-under: exit code 1 for results that nobody should use unread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsmerge_cli.common.errors import ConfigError, DataError, FsmergeError
from fsmerge_cli.common.notes import warnings_in


@dataclass(frozen=True)
class Gate:
    """strict: fail where there is a warning. fail_under: fail where a top-1 accuracy is lower, in per cent."""

    strict: bool = False
    fail_under: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is compared."""
        return self.strict or self.fail_under is not None

    def unchecked(self, top1: Mapping[str, float], numbers: Iterable[str]) -> list[str]:
        """A note on the tasks of numbers beside those whose accuracy is compared; empty where all are compared."""
        names = [*numbers]
        if self.fail_under is None or not top1 or not names:
            return []
        were = "they were" if len(names) > 1 else "it was"
        return [f"--fail-under={self.fail_under:g}: {_no_accuracy(names)}; {were} not checked"]

    def require(
        self, what: str, notes: Iterable[str], top1: Mapping[str, float], numbers: Iterable[str] = ()
    ) -> None:
        """Raise FsmergeError where a warning or an accuracy fails.

        what: whose accuracies these are; top1: shares, by task; numbers: the tasks that predict a number and have
        no accuracy. Raises ConfigError where there are only such tasks, DataError where nothing was measured.
        """
        if self.fail_under is not None and not top1:
            if names := [*numbers]:
                raise ConfigError(
                    f"--fail-under={self.fail_under:g} compares the top-1 accuracy: {_no_accuracy(names)}; leave "
                    "out --fail-under."
                )
            raise DataError(
                f"--fail-under={self.fail_under:g} compares the top-1 accuracy on labelled test images, and there "
                "are none. Put test images into class folders, or leave out --fail-under."
            )
        failed = [f"--strict: {warning}" for warning in warnings_in(notes) if self.strict]
        if self.fail_under is not None:
            failed += [
                f"--fail-under={self.fail_under:g}: {what} for '{task}' has a top-1 accuracy of "
                f"{100 * share:.1f} %"
                for task, share in top1.items()
                if 100 * share < self.fail_under
            ]
        if failed:
            raise FsmergeError("\n".join(failed))


def _no_accuracy(names: Sequence[str]) -> str:
    """Why tasks of numbers are not compared."""
    verb = "predicts" if len(names) == 1 else "predict"
    return f"{', '.join(map(repr, names))} {verb} a number, which has no accuracy"


def measured_in(row: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """The top-1 accuracies by task of a row of evaluation.json, and its tasks of numbers."""
    return {name: own["top1"] for name, own in row.get("tasks", {}).items()}, [*row.get("numbers", {})]


def gate_of(arguments: Sequence[str]) -> tuple[list[str], Gate]:
    """The arguments without --strict and --fail-under=PERCENT (also in two arguments), and what they ask for."""
    rest: list[str] = []
    values: list[str] = []
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name == "--fail-under":
            values.append(value if equals else next(given, ""))
        elif argument != "--strict":
            rest.append(argument)
    strict = "--strict" in arguments
    if not values:
        return rest, Gate(strict)
    try:
        limit = float(values[-1])
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= 100:
        raise ConfigError(f"--fail-under={values[-1]}: should be an accuracy in per cent, from 0 to 100.")
    return rest, Gate(strict, limit)
