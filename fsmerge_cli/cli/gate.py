"""--strict and --fail-under: exit code 1 for results that nobody should use unread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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

    def require(self, what: str, notes: Iterable[str], top1: Mapping[str, float]) -> None:
        """Raise FsmergeError where a warning or an accuracy fails, DataError where no accuracy was measured.

        what: whose accuracies these are; top1: shares, by task.
        """
        if self.fail_under is not None and not top1:
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
